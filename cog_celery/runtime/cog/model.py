"""Structured values: a class with annotations becomes a dataclass with keyword arguments.

It must not know how values become JSON.
"""

from __future__ import annotations

import sys
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


__all__ = ["BaseModel"]


@dataclass_transform(kw_only_default=True)
class BaseModel:
    """Base of a structured value: annotated names are its fields.

    A field that is Optional may be left out. Fields that were never set are left out of an output.
    `auto_dataclass=False` leaves the class as it is, for one that is decorated by hand; other arguments go to
    dataclasses.dataclass().
    Raises TypeError and ValueError for bases that do not go together.
    """

    _auto_dataclass = True

    def __init_subclass__(cls, *, auto_dataclass: bool = True, init: bool = True, **options: Any) -> None:
        super().__init_subclass__()
        import copy
        import dataclasses
        import functools

        primary, *mixins = cls.__bases__
        if not issubclass(primary, BaseModel):
            raise TypeError(f'Primary base class of "{cls.__name__}" must inherit from BaseModel')
        for mixin in mixins:
            if dataclasses.is_dataclass(mixin) and not issubclass(mixin, BaseModel):
                raise TypeError(f'Cannot mixin dataclass "{mixin.__name__}" while inheriting from `BaseModel`')
        for base in cls.__bases__:
            if issubclass(base, BaseModel) and base is not BaseModel and base._auto_dataclass != auto_dataclass:
                raise ValueError(
                    f'"{cls.__name__}" has auto_dataclass={auto_dataclass}, but its base "{base.__name__}" has '
                    f"auto_dataclass={base._auto_dataclass}: the fields of one would be missing in the other"
                )
        cls._auto_dataclass = auto_dataclass
        if not auto_dataclass:
            return
        for name, annotation in _own_annotations(cls).items():
            default = cls.__dict__.get(name, dataclasses.MISSING)
            if default is dataclasses.MISSING and _is_optional(annotation):
                setattr(cls, name, None)
            elif isinstance(default, (list, dict, set)):
                setattr(cls, name, dataclasses.field(default_factory=functools.partial(copy.deepcopy, default)))
        # An __init__ of our own: dataclasses' would refuse a field without a default behind one that has one.
        dataclasses.dataclass(init=False, **options)(cls)
        if init and "__init__" not in cls.__dict__:
            cls.__init__ = _initialise  # type: ignore[method-assign]


def _initialise(self: Any, *values: Any, **named: Any) -> None:
    """Set the fields that are given; those with a plain default stay unset, and their class shows the default."""
    import dataclasses

    fields = [field for field in dataclasses.fields(self) if field.init]
    if len(values) > len(fields):
        raise TypeError(f"{type(self).__name__}() takes {len(fields)} fields, but {len(values)} were given")
    for field, value in zip(fields, values):
        if field.name in named:
            raise TypeError(f"{type(self).__name__}() got field {field.name!r} twice")
        named[field.name] = value
    missing = []
    for field in fields:
        if field.name in named:
            object.__setattr__(self, field.name, named.pop(field.name))
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(self, field.name, field.default_factory())
        elif field.default is dataclasses.MISSING:
            missing.append(repr(field.name))
    if missing:
        raise TypeError(f"{type(self).__name__}() lacks {', '.join(missing)}")
    if named:
        raise TypeError(f"{type(self).__name__}() has no field {', '.join(map(repr, named))}")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _own_annotations(cls: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return dict(annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF))
    return dict(cls.__dict__.get("__annotations__", {}))  # noqa: RUF063 -- inspect has no such function before 3.10


def _is_optional(annotation: Any) -> bool:
    if isinstance(annotation, str):  # from __future__ import annotations
        text = annotation.replace(" ", "")
        return text.startswith(("Optional[", "typing.Optional[", "None|")) or text.endswith("|None")
    return type(None) in typing.get_args(annotation) and typing.get_origin(annotation) is not typing.Literal
