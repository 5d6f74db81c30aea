"""Why a stored model version cannot be used."""

from typing import ClassVar

from recparams_server.contract.errors import LONGEST_DESCRIPTION


class ModelError(Exception):
    """A version that cannot be used. The message names it and says why.

    Args:
        message: cut where it would be too long for an answer, since it may quote the row.

    Attributes:
        reason: the same for programs.
    """

    reason: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message[:LONGEST_DESCRIPTION])


class MissingModelError(ModelError, LookupError):
    """There is no such version."""

    reason = "NOT_FOUND"


class NoTableError(ModelError):
    """A version that has no table."""

    reason = "NO_TABLE"


class UnservableModelError(ModelError):
    """A version that no server here can serve."""


class ActivationNumberError(UnservableModelError):
    """An activation whose number is too large for a decision token."""

    reason = "ACTIVATION_NUMBER_TOO_LARGE"


class CorruptModelError(UnservableModelError):
    """A version whose row is damaged."""

    reason = "MODEL_CORRUPT"


class IncompatibleModelError(UnservableModelError):
    """A version built for another state space."""

    reason = "MODEL_INCOMPATIBLE"
