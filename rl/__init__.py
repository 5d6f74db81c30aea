"""The learning core of recparams: pure NumPy and numba, usable alone in a notebook.

Nothing in here does I/O, reads a clock or keeps global state.
"""
