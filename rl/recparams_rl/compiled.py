"""Functions that numba compiles, without importing numba before the first of them is called."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from threading import RLock
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_linking = RLock()


class Compiled(Generic[P, R]):
    """A function that is compiled when it is first called, and may call others of its kind.

    The code is kept in numba's cache, and runs without the global interpreter lock.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._dispatcher: Any = None
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the compiled function."""
        with _linking:
            dispatcher = self._linked()
        result: R = dispatcher(*args, **kwargs)
        return result

    def _linked(self) -> Any:
        """Returns numba's dispatcher, put in the place of this object in the function's module.

        Numba finds the functions that a function calls among the names of its module.
        """
        if self._dispatcher is None:
            from numba import njit

            self._dispatcher = njit(nogil=True, cache=True)(self._function)
            names = vars(sys.modules[self._function.__module__])
            for name, value in list(names.items()):
                if isinstance(value, Compiled):
                    names[name] = value._linked()
        return self._dispatcher


class NotCompiledError(Exception):
    """A function is not in numba's cache, and may not be compiled now."""


@contextmanager
def only_compiled() -> Iterator[None]:
    """Takes functions from numba's cache alone in the body of a with statement.

    One that would have to be compiled there raises NotCompiledError.
    """
    from numba.core import event

    class Refusal(event.Listener):
        def on_start(self, _: Any) -> None:
            raise NotCompiledError

        def on_end(self, _: Any) -> None:
            pass

    with event.install_listener("numba:compile", Refusal()):
        yield
