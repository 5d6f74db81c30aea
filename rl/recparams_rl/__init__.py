"""The learning core of recparams: pure NumPy and numba, usable alone in a notebook.

Nothing in here does I/O, reads a clock or keeps global state, but for `load_log`, which reads a
file of recorded interactions.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recparams_rl.log_files import load_log

__all__ = ["load_log"]


def __getattr__(name: str) -> Any:
    # Whoever wants one part of the core does not wait for the rest of it.
    if name == "load_log":
        from recparams_rl.log_files import load_log

        return load_log
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
