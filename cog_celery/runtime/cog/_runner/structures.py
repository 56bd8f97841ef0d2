"""Converters for types, made once from annotations: from JSON to what predict() gets, at any depth.

It must not know about inputs. The plain types are those of `values`; what has a structure is built here: lists, dicts,
sets, dataclasses, TypedDicts, BaseModels, pydantic's models of either release, and what a coder of the model's decodes.
Neither dataclasses nor pydantic is imported: a model that declares such a type has done so.
"""

from __future__ import annotations

import collections.abc
import enum
import os
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Callable, Optional

from .. import types as cog_types
from ..coder import Coder, own_coder
from ..opaque import Opaque
from . import values
from .values import Converter, Unfit

LISTS = (list, collections.abc.Sequence)
SETS = (set, collections.abc.Set, collections.abc.MutableSet)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
UNION_TYPES = tuple(t for t in (typing.Union, getattr(types, "UnionType", None)) if t is not None)
PLAIN: dict[Any, tuple[str, Converter]] = {
    bool: ("bool", values.to_bool),
    int: ("int", values.to_int),
    float: ("float", values.to_float),
    str: ("str", values.to_str),
    dict: ("dict", values.to_dict),
    Any: ("Any", values.to_any),
}
_KEYS: dict[Any, Converter] = {
    str: values.to_str,
    int: values.to_int,
    float: values.to_float,
    bool: values.to_bool,
    Any: values.to_any,
}
_MARKS = ("Required", "NotRequired", "ReadOnly", "Final")


class Unsupported(Exception):
    """A type that no input can have; `text` says which one and where, `hint` what to write instead."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


class Structures:
    """The converters of one input, and the files in it.

    A value with files is converted twice. First with `paths` None: its URLs come into `urls`, and nothing is built,
    since a model's own class may look at its files at once. Then with the local paths, in the same order.
    """

    __slots__ = ("_within", "has_files", "has_secrets", "paths", "urls")

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.paths: Optional[Iterator[str]] = None
        self.has_files = False
        self.has_secrets = False
        self._within: list[Any] = []

    def converter(self, annotation: Any) -> Converter:
        """The converter of a type, at any depth. Raises Unsupported."""
        inner, opaque = bare(annotation)
        if opaque:
            return values.to_any
        members = optional_of(inner)
        if members is not None:
            return values.to_optional(self.converter(members))
        plain = PLAIN.get(inner) if _hashable(inner) else None
        if plain is not None:
            return plain[1]
        origin = typing.get_origin(inner)
        if origin is typing.Literal:
            return choice_of(list(typing.get_args(inner)), type_name(inner))[1]
        kind = origin or inner
        if kind in LISTS:
            return values.to_list(self.converter(element_of(inner)))
        if kind in SETS:
            return values.to_set(self.converter(element_of(inner)))
        if kind in MAPPINGS:
            return self._mapping(inner)
        if origin is not None or not isinstance(inner, type):  # list[int] is a type to some Pythons
            raise Unsupported(f"unsupported Cog type {type_name(inner)}")
        return self._class(inner)

    def take_urls(self) -> list[str]:
        """The URLs that were found since the last call."""
        urls, self.urls = self.urls, []
        return urls

    def flat(self, annotation: Any) -> Converter:
        """As converter(), for what is an input by itself: a dict or set has no generic types in it."""
        origin = typing.get_origin(annotation)
        if origin in MAPPINGS or origin in SETS:
            within = _mapping_arguments(annotation)[1] if origin in MAPPINGS else element_of(annotation)
            nested = generic_name(within)
            if nested:
                raise Unsupported(
                    f"{'Dict' if origin in MAPPINGS else 'Set'} cannot have nested type {nested}",
                    "declare dict or list for what has a deeper structure",
                )
        return self.converter(annotation)

    def _mapping(self, annotation: Any) -> Converter:
        key, value = _mapping_arguments(annotation)
        if key not in _KEYS:
            raise Unsupported(f"Dict cannot have keys of type {type_name(key)}", "declare Dict[str, …]")
        if key in (str, Any) and value is Any:
            return values.to_dict
        return values.to_mapping(_KEYS[key], self.converter(value))

    def _class(self, kind: type) -> Converter:
        coder = own_coder(kind)
        if coder is not None:
            return _decoded(coder)
        if issubclass(kind, enum.Enum):
            return enum_of(kind)[1]
        if issubclass(kind, cog_types.Secret):
            self.has_secrets = True
            return values.to_made(values.to_str, kind)
        opener = file_opener(kind)
        if opener is not None:
            self.has_files = True
            return self._file(opener)
        if kind in self._within:
            raise Unsupported(f"{kind.__name__} contains itself", "declare dict for what is nested without an end")
        self._within.append(kind)
        try:
            return self.structure(kind)
        finally:
            self._within.pop()

    def _file(self, opener: Callable[[str], Any]) -> Converter:
        def convert(value: Any) -> Any:
            url = values.to_url(value)
            if self.paths is None:
                self.urls.append(url)
                return url
            return opener(next(self.paths))

        return convert

    # -- structures: an object whose keys are known

    def structure(self, kind: type) -> Converter:
        """The converter of a class with fields, whatever coders there are. Raises Unsupported."""
        if is_typed_dict(kind):
            hints = _hints(kind)
            required = frozenset(name for name in hints if _is_required(kind, name, hints[name]))
            return self._object(hints, required, None, keep=True)
        if hasattr(kind, "__dataclass_fields__"):
            dataclasses = sys.modules["dataclasses"]
            hints = _hints(kind)
            if any(isinstance(hint, dataclasses.InitVar) for hint in hints.values()):
                raise Unsupported(f"{kind.__name__} has an InitVar", "make it a field")
            fields = {f.name: hints.get(f.name, Any) for f in dataclasses.fields(kind) if f.init}
            missing = dataclasses.MISSING
            required = frozenset(
                f.name
                for f in dataclasses.fields(kind)
                if f.init and f.default is missing and f.default_factory is missing
            )
            return self._object(fields, required, lambda given: kind(**given), keep=False)
        if is_pydantic(kind):
            return self._pydantic(kind)
        raise Unsupported(f"unsupported Cog type {kind.__name__}")

    def _object(
        self,
        hints: dict[str, Any],
        required: frozenset[str],
        build: Optional[Callable[[dict[str, Any]], Any]],
        keep: bool,
    ) -> Converter:
        """`keep`: names that the type does not know stay in it; else they are left out."""
        fields = {name: self._field(name, hint) for name, hint in hints.items()}

        def convert(value: Any) -> Any:
            if not isinstance(value, dict):
                raise Unfit("dict")
            made = dict(value) if keep else {}
            for name, convert_field in fields.items():
                if name in value:
                    try:
                        made[name] = convert_field(value[name])
                    except Unfit as unfit:
                        raise unfit.within(name) from None
                elif name in required:
                    raise Unfit("missing").within(name)
            return self._built(build, made)

        return convert

    def _field(self, name: str, hint: Any) -> Converter:
        try:
            return _not_none(self.converter(hint), hint)
        except Unsupported as error:
            raise Unsupported(f"{name}: {error.text}", error.hint) from None

    def _built(self, build: Optional[Callable[[Any], Any]], given: Any) -> Any:
        if build is None or (self.has_files and self.paths is None):
            return given
        try:
            return build(given)
        except Exception as error:  # of the model's own code: its class says no
            raise Unfit("invalid", _sentence(error)) from None

    def _pydantic(self, kind: Any) -> Converter:
        """Pydantic itself checks the value; only files are put in their places before."""
        declared = getattr(kind, "model_fields", None) or kind.__fields__
        build = kind.model_validate if hasattr(kind, "model_validate") else kind.parse_obj
        places: dict[str, Converter] = {}
        for name, field in declared.items():
            annotation = field.annotation if hasattr(field, "annotation") else field.outer_type_
            place = self._file_place(annotation)
            if place is not None:
                for key in (name, getattr(field, "alias", None)):
                    if isinstance(key, str):
                        places[key] = place

        def convert(value: Any) -> Any:
            given = value
            if places and isinstance(value, dict):
                given = {name: _put(name, item, places.get(name)) for name, item in value.items()}
            return self._built(build, given)

        return convert

    def _file_place(self, annotation: Any) -> Optional[Converter]:
        """What puts local files into a value that pydantic is to check; None where the type has no files."""
        inner, _ = bare(annotation)
        member = optional_of(inner)
        if member is not None:
            return self._file_place(member)
        origin = typing.get_origin(inner)
        if origin in LISTS:
            element = self._file_place(element_of(inner))
            return None if element is None else values.to_list(element)
        if origin in MAPPINGS:
            element = self._file_place(_mapping_arguments(inner)[1])
            return None if element is None else values.to_mapping(values.to_any, element)
        if origin is not None or not isinstance(inner, type) or inner in self._within:
            return None
        if issubclass(inner, cog_types.Secret):
            self.has_secrets = True
        opener = file_opener(inner)
        if opener is not None:
            self.has_files = True
            return self._file(opener)
        if is_pydantic(inner):
            return self._nested_places(inner)
        return None

    def _nested_places(self, kind: Any) -> Optional[Converter]:
        self._within.append(kind)
        try:
            declared = getattr(kind, "model_fields", None) or kind.__fields__
            found = {
                name: self._file_place(field.annotation if hasattr(field, "annotation") else field.outer_type_)
                for name, field in declared.items()
            }
        finally:
            self._within.pop()
        places = {name: place for name, place in found.items() if place is not None}
        if not places:
            return None

        def convert(value: Any) -> Any:
            if not isinstance(value, dict):
                return value  # pydantic says so
            return {name: _put(name, item, places.get(name)) for name, item in value.items()}

        return convert


def _put(name: str, value: Any, place: Optional[Converter]) -> Any:
    if place is None or value is None:
        return value
    try:
        return place(value)
    except Unfit as unfit:
        raise unfit.within(name) from None


# -- what a type is


def bare(annotation: Any) -> tuple[Any, bool]:
    """A type without Annotated, Required and their like; and whether it is marked Opaque."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            if any(mark is Opaque for mark in annotation.__metadata__):
                return annotation.__origin__, True
            annotation = annotation.__origin__
        elif _mark(origin) in _MARKS:
            annotation = typing.get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, typing.TypeVar):
            annotation = annotation.__bound__ or Any
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        else:
            return annotation, False


def optional_of(annotation: Any) -> Any:
    """T of Optional[T]; None for any other type. Raises Unsupported for a Union of several types."""
    if typing.get_origin(annotation) not in UNION_TYPES:
        return None
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    if len(members) != 1 or len(members) == len(typing.get_args(annotation)):
        raise Unsupported("unsupported Cog type Union")
    return members[0]


def element_of(annotation: Any) -> Any:
    """T of List[T] and its like; Any where nothing is said."""
    arguments = [e for e in typing.get_args(annotation) if not isinstance(e, typing.TypeVar)]
    return arguments[0] if arguments else Any


def generic_name(annotation: Any) -> str:
    """The name of a generic type with arguments, or of a list; empty for any other type."""
    annotation, opaque = bare(annotation)
    if opaque:
        return ""
    if annotation in LISTS:
        return "list"
    origin = typing.get_origin(annotation)
    if origin is None or origin is typing.Literal:
        return ""
    if origin in UNION_TYPES:
        return "Optional" if type(None) in typing.get_args(annotation) else "Union"
    return str(getattr(origin, "__name__", origin))


def type_name(annotation: Any) -> str:
    """A type as a predictor names it."""
    if annotation is Any:
        return "Any"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "Literal[{}]".format(", ".join(map(repr, typing.get_args(annotation))))
    if origin is not None:
        return str(getattr(origin, "__name__", origin))
    return str(getattr(annotation, "__name__", annotation))


def is_typed_dict(kind: type) -> bool:
    return issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def is_pydantic(kind: Any) -> bool:
    """Whether it is a model of pydantic's, of release 1 or 2."""
    if hasattr(kind, "model_validate"):
        return hasattr(kind, "model_fields")
    return hasattr(kind, "parse_obj") and hasattr(kind, "__fields__")


def file_opener(kind: type) -> Optional[Callable[[str], Any]]:
    """What makes the value of a file's type from its local path; None for any other type."""
    if issubclass(kind, cog_types.File):
        return open_file
    if issubclass(kind, os.PathLike):
        return cog_types.Path if kind.__flags__ & _ABSTRACT else kind
    return None


_ABSTRACT = 1 << 20
"""The flag of a class that cannot be made, as os.PathLike."""


def open_file(path: str) -> Any:
    return open(path, "rb")


def enum_of(kind: type[enum.Enum]) -> tuple[str, Converter, list[Any]]:
    """The members' type, the converter and the members' values. Raises Unsupported."""
    members = [member.value for member in kind]
    for base in (str, int):
        if members and all(type(member) is base for member in members) and not issubclass(kind, base):
            raise Unsupported(
                f"enum {kind.__name__} is used as {base.__name__} but does not extend it",
                f"write class {kind.__name__}({base.__name__}, Enum)",
            )
    name, convert = choice_of(members, kind.__name__)
    return name, values.to_made(convert, kind), members


def choice_of(members: list[Any], shown: str) -> tuple[str, Converter]:
    """The members' type, and what takes one of them. Raises Unsupported."""
    if members and all(isinstance(member, str) for member in members):
        return "str", values.to_text_choice(members)
    if members and all(isinstance(member, int) and not isinstance(member, bool) for member in members):
        return "int", values.to_choice(values.to_int, members)
    raise Unsupported(f"the values of {shown} are not all str or all int", "use members of one of these types")


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:
        raise Unsupported(
            f"the types of {kind.__name__}'s fields cannot be evaluated: {error}",
            "import what they name also when the module runs",
        ) from None


def _is_required(kind: Any, name: str, hint: Any) -> bool:
    mark = _mark(typing.get_origin(hint))
    if mark in ("Required", "NotRequired"):
        return mark == "Required"
    return name in kind.__required_keys__


def _mark(origin: Any) -> str:
    """The name of one of typing's own marks, as Required; empty for any other origin."""
    if getattr(origin, "__module__", "") not in ("typing", "typing_extensions"):
        return ""
    return str(getattr(origin, "_name", None) or getattr(origin, "__name__", ""))


def _mapping_arguments(annotation: Any) -> tuple[Any, Any]:
    arguments = [Any if isinstance(a, typing.TypeVar) else a for a in typing.get_args(annotation)]
    return (arguments[0], arguments[1]) if len(arguments) == 2 else (Any, Any)


def _not_none(convert: Converter, hint: Any) -> Converter:
    """A converter that refuses null, for a type that is neither Optional nor Any."""
    inner, opaque = bare(hint)
    if opaque or inner is Any or typing.get_origin(inner) in UNION_TYPES:
        return convert

    def check(value: Any) -> Any:
        if value is None:
            raise Unfit("none")
        return convert(value)

    return check


def _decoded(coder: Coder) -> Converter:
    def convert(value: Any) -> Any:
        try:
            return coder.decode(value)
        except Exception as error:  # of the model's own code: its coder says no
            raise Unfit("invalid", _sentence(error)) from None

    return convert


def _sentence(error: Exception) -> str:
    """Why a model's class or coder refuses a value; of pydantic's errors no more than place and message."""
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors())
    return str(error) or repr(error)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
