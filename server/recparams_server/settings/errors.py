"""What is wrong with settings, in words and without their values, which may be secrets."""

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

_SENTENCES = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be {le:g} or less",
}
"""By pydantic's type of error; others are told in its own words."""


def settings_problems(failure: ValidationError, known: Iterable[str]) -> list[str]:
    """Returns what is wrong, a line for each setting.

    Args:
        failure: of `Settings`.
        known: names of the settings.
    """
    lines: dict[str, list[str]] = {}
    for problem in failure.errors(include_url=False, include_input=False):
        # What follows the name are the kinds of value that the setting may have.
        name = str(problem["loc"][0]) if problem["loc"] else ""
        lines.setdefault(name, []).append(_sentence(problem, list(known), name))
    return [_line(name, sentences) for name, sentences in lines.items()]


def _line(name: str, sentences: list[str]) -> str:
    if not name:
        return "; ".join(sentences)
    said = " or ".join(
        sentence if position == 0 else sentence.removeprefix("must be ")
        for position, sentence in enumerate(dict.fromkeys(sentences))
    )
    variable = f"RECPARAMS_{name.upper()}"
    if os.environ.get(variable, "").startswith("tcp://"):
        said += (
            f" ({variable} begins with tcp://, as Kubernetes sets it for a Service of that name: "
            "enableServiceLinks: false on the pod leaves it out)"
        )
    return f"{name}: {said}"


def _sentence(problem: Mapping[str, Any], known: list[str], name: str) -> str:
    if problem["type"] == "extra_forbidden":
        like = difflib.get_close_matches(name, known, n=1)
        return f"is no setting; did you mean {like[0]}?" if like else "is no setting"
    context = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        context = {"expected": str(context["expected"]).replace("'", "")}
    if problem["type"] == "value_error":
        return str(context["error"])
    said = _SENTENCES.get(problem["type"])
    if said is None:
        return str(problem["msg"][:1].lower() + problem["msg"][1:])
    return said.format(**context)
