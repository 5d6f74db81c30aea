"""Names of the contract's enums, without the learning core, whose import is slow."""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper as EnumTypeWrapper

V = TypeVar("V", bound=int)


def _prefix(enum: Any) -> str:
    """Returns the prefix of an enum's values, as in MOOD_; the first is MOOD_UNSPECIFIED."""
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


def enum_name(enum: Any, number: int) -> str:
    """Returns the name of an enum's value without its prefix, as in "happy".

    Args:
        enum: the descriptor of the enum.
        number: of one of its values.

    Raises KeyError if the enum has no such number.
    """
    return str(enum.values_by_number[number].name).removeprefix(_prefix(enum)).lower()


def enum_number(enum: "EnumTypeWrapper[V]", name: str) -> V:
    """Returns the number of an enum's value, such as `enum_number(types.Mood, "happy")`.

    Raises ValueError if the enum has no such name.
    """
    return enum.Value(_prefix(enum.DESCRIPTOR) + name.upper())
