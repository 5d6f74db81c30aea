"""Python sources, read by the tests that hold them to a rule."""

import ast
import gc
from pathlib import Path


def parsed(source: Path | str) -> ast.Module:
    """Returns the syntax tree of a file, or of a text.

    The garbage collector waits: a traceback that it logs is parsed as well, and in Python 3.11 that
    breaks the parsing it interrupts (CPython's issue 106905).
    """
    text = source.read_text() if isinstance(source, Path) else source
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if enabled:
            gc.enable()
