"""What a predictor says of one input: its default and its constraints.

It must not know the input's type or any value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional, Union

__all__ = ["MISSING", "FieldInfo", "Input"]


class _Missing:
    """The default of an input that has none; None is a value."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


class FieldInfo:
    """The arguments of one Input(). `default` is MISSING for an input that must be given."""

    __slots__ = (
        "accept",
        "choices",
        "default",
        "default_factory",
        "deprecated",
        "description",
        "ge",
        "le",
        "max_length",
        "min_length",
        "regex",
    )

    def __init__(
        self,
        default: Any = MISSING,
        description: Optional[str] = None,
        ge: Optional[float] = None,
        le: Optional[float] = None,
        min_length: Optional[int] = None,
        max_length: Optional[int] = None,
        regex: Optional[str] = None,
        choices: Optional[Iterable[Union[str, int]]] = None,
        default_factory: Optional[Callable[[], Any]] = None,
        deprecated: Optional[bool] = None,
        accept: Union[str, Sequence[str], None] = None,
    ) -> None:
        # `...` is the old way to say that there is no default.
        self.default = MISSING if default is ... else default
        if default_factory is not None and self.default is not MISSING:
            raise ValueError("Cannot specify both 'default' and 'default_factory' parameters")
        self.default_factory = default_factory
        self.description = description
        self.ge = ge
        self.le = le
        self.min_length = min_length
        self.max_length = max_length
        self.regex = regex
        self.choices = None if choices is None else list(choices)
        self.deprecated = deprecated
        self.accept = accept

    def __repr__(self) -> str:
        said = [(name, getattr(self, name)) for name in self.__slots__]
        shown = [f"{name}={value!r}" for name, value in said if value is not None and value is not MISSING]
        return f"Input({', '.join(shown)})"


def Input(
    default: Any = MISSING,
    description: Optional[str] = None,
    ge: Optional[float] = None,
    le: Optional[float] = None,
    min_length: Optional[int] = None,
    max_length: Optional[int] = None,
    regex: Optional[str] = None,
    choices: Optional[Iterable[Union[str, int]]] = None,
    default_factory: Optional[Callable[[], Any]] = None,
    deprecated: Optional[bool] = None,
    accept: Union[str, Sequence[str], None] = None,
) -> Any:
    """Describe an input, as the default of predict()'s argument.

    `ge` and `le` bound a number; `min_length`, `max_length` and `regex` (from the start) a str; `choices` lists all
    that may be given. On a list each of them applies to every element. Raises ValueError for a default together with a
    default_factory.
    """
    return FieldInfo(
        default, description, ge, le, min_length, max_length, regex, choices, default_factory, deprecated, accept
    )
