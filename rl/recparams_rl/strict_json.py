"""JSON whose objects have no key twice, and whose numbers have no length that Python refuses."""

import json
from collections import Counter
from typing import Any

LONGEST_NUMBER = 400
"""Digits of a whole number; a longer one is read as infinity, which no field can be."""
LONGEST_SHOWN = 80


class _Repeated(dict[str, Any]):
    """An object that has a key twice."""

    key: str


def parse(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: if the text is not JSON, or an object in it has a key twice; says where.
    """
    repeated = []

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        counts = Counter(key for key, _ in pairs)
        twice = _Repeated(made)
        twice.key = next(key for key, count in counts.items() if count > 1)
        repeated.append(twice)
        return twice

    try:
        value = json.loads(text, object_pairs_hook=make_object, parse_int=_parse_int)
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: byte {error.start} is no {error.encoding}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if repeated:
        raise ValueError(f"{_path_of_repeated(value)}: this key is there twice")
    return value


def shown(value: Any) -> str:
    """Returns a value as a message quotes it."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_NUMBER else float(digits)


def _path_of_repeated(value: Any) -> str:
    """Returns where the first object with a key twice has it, as in q_table['state']['action']."""
    todo = [("", value)]
    # It is found: what another value of the same key has replaced was in an object like that.
    while True:
        path, value = todo.pop()
        if isinstance(value, _Repeated):
            return _below(path, value.key)
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            inner = list(value.items())
        elif isinstance(value, list):
            inner = list(enumerate(value))
        todo += [(_below(path, key), one) for key, one in reversed(inner)]


def _below(path: str, key: Any) -> str:
    return f"{path}[{key!r}]" if path else str(key)
