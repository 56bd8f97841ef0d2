"""A predictor's inputs and output, read once from its signature.

It must not import or call anything of the model's. What cannot work is refused here, before anything is consumed:
`Refused`, with file, line and what to write instead.
"""

from __future__ import annotations

import collections.abc
import enum
import re
import typing
from typing import Any, Callable, Optional

from .. import types as cog_types
from ..input import MISSING, FieldInfo
from . import values
from .functions import EMPTY, Function, Parameter
from .refusal import Refused
from .standard import import_standard
from .structures import (
    LISTS,
    PLAIN,
    UNION_TYPES,
    Structures,
    Unsupported,
    bare,
    choice_of,
    element_of,
    enum_of,
    file_opener,
    generic_name,
    open_file,
    optional_of,
    type_name,
)
from .values import Converter, Unfit

ITERATORS = (
    collections.abc.Iterator,
    collections.abc.AsyncIterator,
    collections.abc.Iterable,
    collections.abc.AsyncIterable,
    collections.abc.Generator,
    collections.abc.AsyncGenerator,
)
CONCATENATING = (cog_types.ConcatenateIterator, cog_types.AsyncConcatenateIterator)
_NUMBERS = ("int", "float")
_LIMITS: dict[str, tuple[type, ...]] = {
    "ge": (float, int),
    "le": (float, int),
    "min_length": (int,),
    "max_length": (int,),
    "regex": (str,),
}
_KNOWN = (
    "bool, int, float, str, cog.Path, cog.Secret, dict, set, Any, an Enum or Literal of str or int, a dataclass, "
    "TypedDict or BaseModel, Optional and List of these, or a class that a registered cog.Coder knows"
)


class Input:
    """One input. `type` is its annotation as text, `element` what is left of it without Optional and List; `kind` says
    what that is: `file` for whatever is fetched, `structure` for what is built of several values.
    """

    __slots__ = (
        "choices",
        "convert",
        "default",
        "element",
        "factory",
        "info",
        "kind",
        "name",
        "open",
        "optional",
        "repeated",
        "required",
        "secret",
        "structures",
        "type",
    )

    def __init__(self, name: str, info: FieldInfo) -> None:
        self.name = name
        self.info = info
        self.type = ""
        self.kind = ""
        self.element: Any = Any
        self.optional = False
        self.repeated = False
        self.required = False
        self.secret = False
        self.choices: Optional[list[Any]] = None
        self.default: Any = None
        self.factory: Optional[Callable[[], Any]] = None
        """Makes the default afresh for every prediction; None: `default` can be shared."""
        self.convert: Converter = values.to_any
        self.open: Callable[[str], Any] = cog_types.Path
        """Makes the value from the path of a fetched file."""
        self.structures: Optional[Structures] = None
        """For a structure with files in it: what finds them, and puts them in."""

    @property
    def shown(self) -> str:
        """The input as a predictor declares it."""
        return f"{self.name}: {self.type}"


class Signature:
    """The inputs of predict() in order, its name, `predict` or `run`, whether it is async, the type that it returns, or
    EMPTY, and what its author should know.
    """

    __slots__ = ("function", "inputs", "is_async", "name", "notes", "returns")

    def __init__(self, name: str, function: Function, inputs: list[Input], notes: list[str]) -> None:
        self.name = name
        self.function = function
        self.inputs = inputs
        self.notes = notes
        self.is_async = function.is_async
        self.returns = function.returned()


def inspect_predict(function: Any, name: str, method: bool) -> Signature:
    """Read predict() or run(); raises Refused for a signature that cannot be served."""
    reader = Function(function, f"{name}()", name)
    parameters = reader.parameters
    if method:
        if not parameters or parameters[0].name != "self":
            raise reader.refused(f"{name}() must have 'self' first argument", f"write def {name}(self, …)")
        parameters = parameters[1:]
    reader.refuse_variadic(f"name every input: def {name}(self, text: str, …); a decorator has to use functools.wraps")
    inputs = [_read_input(reader, parameter) for parameter in parameters]
    _check_output(reader)
    notes = [f"{field.shown}: File is the old way, declare cog.Path" for field in inputs if field.open is open_file]
    return Signature(name, reader, inputs, notes)


def inspect_setup(function: Any, predict: Signature) -> tuple[bool, Any]:
    """Read setup(): whether it takes weights, and their annotation. Raises Refused."""
    reader = Function(function, "setup()", "setup")
    parameters = reader.parameters
    if not parameters or parameters[0].name != "self":
        raise reader.refused("setup() must have 'self' first argument", "write def setup(self)")
    reader.refuse_variadic("write def setup(self)")
    extra = [parameter.name for parameter in parameters[1:] if parameter.name != "weights"]
    if extra:
        raise reader.refused(
            f"unexpected setup() arguments: {', '.join(extra)}",
            "write def setup(self) or def setup(self, weights=None)",
        )
    if reader.returned() not in (EMPTY, None, type(None), Any):
        raise reader.refused("setup() must return None", "keep what it makes as attributes of self, and write -> None")
    if reader.is_async and not predict.is_async:
        raise reader.refused(
            f"setup() is async, but {predict.name}() is not",
            f"write async def {predict.name}(self, …), or def setup(self)",
        )
    if len(parameters) == 1:
        return False, None
    return True, reader.annotation(parameters[1])


# -- inputs


def _read_input(function: Function, parameter: Parameter) -> Input:
    default = parameter.default
    info = default if isinstance(default, FieldInfo) else FieldInfo(MISSING if default is EMPTY else default)
    field = Input(parameter.name, info)

    def refuse(text: str, hint: str) -> Refused:
        return function.refused(text, hint, parameter.name)

    if parameter.annotation is EMPTY:
        raise refuse(
            f"missing type annotation for input: {field.name}", f"write {field.name}: str, or another of: {_KNOWN}"
        )
    annotation = function.annotation(parameter)
    if any(isinstance(mark, FieldInfo) for mark in getattr(annotation, "__metadata__", ())):
        raise refuse(
            f"invalid input field {field.name}: Input() within Annotated",
            f"write it as the default: {field.name}: {type_name(bare(annotation)[0])} = Input(…)",
        )
    try:
        element = _unfold(field, annotation)
        convert = _read_element(field, element)
    except Unsupported as unsupported:
        text = (
            unsupported.text
            if unsupported.text.startswith("enum ")
            else (f"invalid input field {field.name}: {unsupported.text}")
        )
        raise refuse(text, unsupported.hint or f"declare one of: {_KNOWN}") from None
    base = convert  # without constraints, for the choices and the default
    convert = _constrain(field, convert, refuse)
    if field.repeated:
        convert, base = values.to_list(convert), values.to_list(base)
    field.convert = convert
    _read_default(field, base, refuse)
    return field


_Refuse = Callable[[str, str], Refused]


def _unfold(field: Input, annotation: Any) -> Any:
    """Take Optional and List off a type, noting them; returns the type within. Raises Unsupported."""
    text = "{}"
    annotation, opaque = bare(annotation)
    member = optional_of(annotation)
    if member is not None:
        field.optional = True
        annotation, within = bare(member)
        opaque |= within
        text = "Optional[{}]"
    if annotation in LISTS or typing.get_origin(annotation) in LISTS:
        annotation, within = bare(element_of(annotation))
        nested = "" if opaque or within else generic_name(annotation)
        if nested:
            outer = "Optional" if field.optional else "List"
            nested = "list" if field.optional else nested
            raise Unsupported(
                f"{outer} cannot have nested type {nested}", "declare a flat List, or dict for what has a structure"
            )
        opaque |= within
        field.repeated = True
        text = text.format("List[{}]")
    field.type = text.format(type_name(annotation))
    return Any if opaque else annotation


def _read_element(field: Input, annotation: Any) -> Converter:
    """Note the kind of a type, and return its converter. Raises Unsupported."""
    field.element = annotation
    try:
        plain = PLAIN.get(annotation)
    except TypeError:  # not hashable, so none of them
        plain = None
    if plain:
        field.kind, convert = plain
        return convert
    if typing.get_origin(annotation) is typing.Literal:
        field.choices = list(typing.get_args(annotation))
        field.kind, convert = choice_of(field.choices, field.type)
        return convert
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        if issubclass(annotation, enum.Enum):
            field.kind, convert, field.choices = enum_of(annotation)
            return convert
        if issubclass(annotation, cog_types.Secret):
            field.kind, field.secret = "Secret", True
            return values.to_made(values.to_str, annotation)
        if issubclass(annotation, cog_types.URLPath):
            field.kind = "url"
            return values.to_made(values.to_url, lambda url: annotation(source=url))
        if issubclass(annotation, cog_types.URLFile):
            field.kind = "url"
            return values.to_made(values.to_url, annotation)
        opener = file_opener(annotation)
        if opener is not None:
            field.kind, field.open = "file", opener
            return values.to_url
    structures = Structures()
    field.kind = "structure"
    convert = structures.flat(annotation)
    field.secret = structures.has_secrets
    if structures.has_files:
        field.structures = structures
    return convert


def _constrain(field: Input, convert: Converter, refuse: _Refuse) -> Converter:
    info, kind = field.info, field.kind
    bounded = info.ge is not None or info.le is not None
    sized = info.min_length is not None or info.max_length is not None
    for name, types_ in _LIMITS.items():
        limit = getattr(info, name)
        if limit is not None and (not isinstance(limit, types_) or isinstance(limit, bool)):
            raise refuse(f"{name}={limit!r} is not {type_name(types_[0])}: {field.shown}", "mend the constraint")
    if info.choices is not None:
        return _choose(field, convert, bounded, sized, refuse)
    if bounded and (kind not in _NUMBERS or field.choices):
        raise refuse(f"incompatible input type for ge/le: {field.shown}", "take ge and le out, or declare int or float")
    if sized and (kind != "str" or field.choices):
        raise refuse(
            f"incompatible input type for min_length/max_length: {field.shown}",
            "take min_length and max_length out, or declare str",
        )
    if info.regex is not None:
        if kind != "str" or field.choices:
            raise refuse(f"incompatible input type for regex: {field.shown}", "take regex out, or declare str")
        try:
            re.compile(info.regex)
        except re.error as error:
            raise refuse(f"regex={info.regex!r} is none: {error}: {field.shown}", "mend the expression") from None
    return values.constrained(convert, info.ge, info.le, info.min_length, info.max_length, info.regex)


def _choose(field: Input, convert: Converter, bounded: bool, sized: bool, refuse: _Refuse) -> Converter:
    choices = [_member_value(choice, field, refuse) for choice in field.info.choices or []]
    base = {"int": int, "str": str}.get(field.kind)
    if base is None or field.choices:
        raise refuse(f"incompatible input type for choices: {field.shown}", "declare str or int, or take choices out")
    if bounded:
        raise refuse(f"choices and ge/le are mutually exclusive: {field.shown}", "keep one of them")
    if sized:
        raise refuse(f"choices and min_length/max_length are mutually exclusive: {field.shown}", "keep one of them")
    if len(choices) < 2:
        raise refuse(
            f"choices={choices!r} must have >= 2 elements: {field.shown}",
            "add what else may be chosen, or make it no input",
        )
    if not all(isinstance(choice, base) and not isinstance(choice, bool) for choice in choices):
        raise refuse(
            f"not all choices have the same type as input: {field.shown}", f"make every choice a {base.__name__}"
        )
    field.choices = choices
    return (
        values.to_text_choice([str(choice) for choice in choices])
        if base is str
        else values.to_choice(convert, choices)
    )


def _member_value(value: Any, field: Input, refuse: _Refuse) -> Any:
    """What a member of an Enum stands for where a str or int is declared; any other value as it is."""
    base = field.element
    if not isinstance(value, enum.Enum) or base not in (str, int):
        return value
    if not isinstance(value, base):
        kind = type(value).__name__
        raise refuse(
            f"enum {kind} is used as {base.__name__} but does not extend it",
            f"write class {kind}({base.__name__}, Enum)",
        )
    return value.value


def _read_default(field: Input, base: Converter, refuse: _Refuse) -> None:
    info = field.info
    if info.default_factory is not None:
        field.factory = info.default_factory
        return
    default = info.default
    if default is MISSING:
        field.required = not field.optional
        return
    default = _member_value(default, field, refuse)
    if default is None:
        if not field.optional and field.kind != "Any":
            raise refuse(
                "error-prone usage of default=None",
                f"write {field.name}: Optional[{field.type}] for an input that may be null, or give another default",
            )
        return
    if field.kind == "Secret" and isinstance(default, (str, list)):
        default = _made(field, default, base, refuse)
    elif field.kind == "url":
        _made(field, default, base, refuse)
        field.factory = lambda: base(default)
    elif field.kind in ("bool", "int", "float", "str") and not isinstance(default, enum.Enum):
        default = _fit_default(field, default, base, refuse)
    field.default = default
    if isinstance(default, (list, dict, set)) or field.kind == "structure":
        deepcopy = import_standard("copy").deepcopy
        field.factory = lambda: deepcopy(default)


def _made(field: Input, default: Any, base: Converter, refuse: _Refuse) -> Any:
    try:
        return base(default)
    except Unfit:
        shown = cog_types.MASK if field.secret else f"{default!r}"
        raise refuse(
            f"default={shown} is not of the type of input: {field.shown}", f"give a default of type {field.type}"
        ) from None


def _fit_default(field: Input, default: Any, base: Converter, refuse: _Refuse) -> Any:
    shown = f"default={default!r}"
    if field.repeated and isinstance(default, (tuple, set)):
        default = list(default)
    if field.choices is None:
        # Before the limits: a default of another type than the input's is told as such.
        default = _made(field, default, base, refuse)
    try:
        return field.convert(default)
    except Unfit as error:
        if error.kind == "regex":
            raise refuse(f"{shown} not a regex match for input: {field.shown}", "change one of them") from None
        if error.kind in ("ge", "le", "min_length", "max_length"):
            raise refuse(
                f"{shown} conflicts with {error.kind}={error.limit!r} for input: {field.shown}", "change one of them"
            ) from None
        return default  # not among the choices: predict() may mean something by it


# -- output


def _check_output(function: Function) -> None:
    returned, opaque = bare(function.returned())
    name = function.shown
    if returned is None or returned is type(None):
        raise function.refused(f"{name} must not return None", "declare what it returns, -> str say")
    origin = typing.get_origin(returned)
    if origin in UNION_TYPES and type(None) in typing.get_args(returned):
        raise function.refused("output must not be Optional", "declare the type without Optional, or Any")
    kind = origin or returned
    if opaque or not isinstance(kind, type):
        return
    arguments = [a for a in typing.get_args(returned) if not isinstance(a, typing.TypeVar)]
    if kind in (*ITERATORS, *CONCATENATING) and not arguments:
        raise function.refused("iterator type must have a type argument", f"write {kind.__name__}[str]")
    if kind in CONCATENATING and arguments[0] is not str:
        raise function.refused(f"{kind.__name__} must have str element", f"write {kind.__name__}[str], or Iterator[…]")
