"""A predictor's inputs and output, read once from its signature.

It must not import or call anything of the model's. What cannot work is refused here, before anything is consumed:
`Refused`, with file, line and what to write instead.
"""

from __future__ import annotations

import ast
import collections.abc
import copy
import enum
import inspect
import os
import re
import sys
import types
import typing
from typing import Any, Callable, Optional

from .. import types as cog_types
from ..input import MISSING, FieldInfo
from . import values
from .refusal import Refused
from .values import Converter, Unfit

_UNION_TYPES = tuple(t for t in (typing.Union, getattr(types, "UnionType", None)) if t is not None)
_LISTS = (list, collections.abc.Sequence)
_ITERATORS = (
    collections.abc.Iterator,
    collections.abc.AsyncIterator,
    collections.abc.Iterable,
    collections.abc.AsyncIterable,
    collections.abc.Generator,
    collections.abc.AsyncGenerator,
)
_CONCATENATING = (cog_types.ConcatenateIterator, cog_types.AsyncConcatenateIterator)
_PLAIN: dict[Any, tuple[str, Converter]] = {
    bool: ("bool", values.to_bool),
    int: ("int", values.to_int),
    float: ("float", values.to_float),
    str: ("str", values.to_str),
    dict: ("dict", values.to_dict),
    Any: ("Any", values.to_any),
    inspect.Parameter.empty: ("Any", values.to_any),
}
_NUMBERS = ("int", "float")
_LIMITS: dict[str, tuple[type, ...]] = {
    "ge": (float, int),
    "le": (float, int),
    "min_length": (int,),
    "max_length": (int,),
    "regex": (str,),
}
_KNOWN = (
    "bool, int, float, str, cog.Path, cog.Secret, dict, Any, an Enum or Literal of str or int, "
    "Optional and List of these"
)


class Input:
    """One input. `type` is its annotation as text; `kind` the element's type: `file` for whatever is fetched."""

    __slots__ = (
        "choices",
        "convert",
        "default",
        "factory",
        "info",
        "kind",
        "name",
        "open",
        "optional",
        "repeated",
        "required",
        "secret",
        "type",
    )

    def __init__(self, name: str, info: FieldInfo) -> None:
        self.name = name
        self.info = info
        self.type = ""
        self.kind = ""
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

    @property
    def shown(self) -> str:
        """The input as a predictor declares it."""
        return f"{self.name}: {self.type}"


class Signature:
    """The inputs of predict() in order, its name, `predict` or `run`, and what its author should know."""

    __slots__ = ("inputs", "name", "notes")

    def __init__(self, name: str, inputs: list[Input], notes: list[str]) -> None:
        self.name = name
        self.inputs = inputs
        self.notes = notes


def inspect_predict(function: Any, name: str, method: bool) -> Signature:
    """Read predict() or run(); raises Refused for a signature that cannot be served."""
    reader = _Function(function, f"{name}()", name)
    parameters = reader.parameters
    if method:
        if not parameters or parameters[0].name != "self":
            raise reader.refused(f"{name}() must have 'self' first argument", f"write def {name}(self, …)")
        parameters = parameters[1:]
    reader.refuse_variadic(f"name every input: def {name}(self, text: str, …); a decorator has to use functools.wraps")
    inputs = [_read_input(reader, parameter) for parameter in parameters]
    _check_output(reader)
    notes = [f"{field.shown}: File is the old way, declare cog.Path" for field in inputs if field.open is open_file]
    return Signature(name, inputs, notes)


def inspect_setup(function: Any) -> tuple[bool, Any]:
    """Read setup(): whether it takes weights, and their annotation. Raises Refused."""
    reader = _Function(function, "setup()", "setup")
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
    returned = reader.returned()
    if returned is not inspect.Signature.empty and returned not in (None, type(None), Any):
        raise reader.refused("setup() must return None", "keep what it makes as attributes of self, and write -> None")
    if len(parameters) == 1:
        return False, None
    return True, reader.annotation(parameters[1])


class _Function:
    """A function of the model's behind all its decorators, and where it stands."""

    def __init__(self, function: Any, shown: str, name: str) -> None:
        self.name = name
        self.shown = shown
        # A static or class method has no self, and is no function either; some Pythons would unwrap it to one.
        bare = callable(function) and not isinstance(function, (staticmethod, classmethod))
        self.function = inspect.unwrap(function) if bare else function
        if not inspect.isfunction(self.function):
            raise Refused(f"{name} is not a function", f"write def {name}(self, …) in the class", *_place(function))
        self.file, self.line = _place(self.function)
        signature = _signature(self.function)
        self.parameters = list(signature.parameters.values())
        self._returned = signature.return_annotation

    def refused(self, text: str, hint: str, parameter: Optional[str] = None) -> Refused:
        """A refusal that names this function's place, or its parameter's."""
        line = self.line if parameter is None else _line_of(self.function, parameter) or self.line
        return Refused(text, hint, self.file, line)

    def refuse_variadic(self, hint: str) -> None:
        for parameter in self.parameters:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                raise self.refused(f"{self.shown} must not have **kwargs", hint)
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                raise self.refused(f"{self.shown} must not have *args", hint)
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and parameter.name != "self":
                raise self.refused(f"{self.shown} must not have positional-only arguments", "take out the `/`")

    def annotation(self, parameter: inspect.Parameter) -> Any:
        """A parameter's type, or inspect.Parameter.empty; raises Refused for text that names nothing."""
        try:
            return self._resolve(parameter.annotation)
        except Exception as error:
            version = "{}.{}".format(*sys.version_info)
            raise self.refused(
                f"invalid input field {parameter.name}: its type {parameter.annotation!r} cannot be evaluated "
                f"on Python {version}: {error}",
                "import what it names also when the module runs; before Python 3.10 write Optional[…] for … | None",
                parameter.name,
            ) from None

    def returned(self) -> Any:
        """The type it is said to return; inspect.Signature.empty when nothing is said, or it cannot be known."""
        try:
            return self._resolve(self._returned)
        except Exception:  # only imported for type checkers, say: nothing depends on it
            return inspect.Signature.empty

    def _resolve(self, annotation: Any) -> Any:
        if annotation is inspect.Signature.empty:
            return annotation
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(holder, self.function.__globals__)["it"]


def _signature(function: types.FunctionType) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


# -- inputs


def _read_input(function: _Function, parameter: inspect.Parameter) -> Input:
    default = parameter.default
    if isinstance(default, FieldInfo):
        info = default
    else:
        info = FieldInfo(MISSING if default is inspect.Parameter.empty else default)
    field = Input(parameter.name, info)

    def refuse(text: str, hint: str) -> Refused:
        return function.refused(text, hint, parameter.name)

    if parameter.annotation is inspect.Parameter.empty:
        raise refuse(
            f"missing type annotation for input: {field.name}", f"write {field.name}: str, or another of: {_KNOWN}"
        )
    element = _unfold(field, function.annotation(parameter), refuse)
    convert = _read_element(field, element, refuse)
    base = convert  # without constraints, for the choices and the default
    convert = _constrain(field, convert, refuse)
    if field.repeated:
        convert, base = values.to_list(convert), values.to_list(base)
    field.convert = convert
    _read_default(field, base, refuse)
    return field


_Refuse = Callable[[str, str], Refused]


def _unfold(field: Input, annotation: Any, refuse: _Refuse) -> Any:
    """Take Optional and List off a type, noting them; returns the type within."""
    text = "{}"
    if typing.get_origin(annotation) in _UNION_TYPES:
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) != 1 or len(members) == len(typing.get_args(annotation)):
            raise refuse(f"invalid input field {field.name}: unsupported Cog type Union", f"declare one of: {_KNOWN}")
        field.optional = True
        annotation = members[0]
        text = "Optional[{}]"
    if annotation in _LISTS or typing.get_origin(annotation) in _LISTS:
        elements = [e for e in typing.get_args(annotation) if not isinstance(e, typing.TypeVar)]
        annotation = elements[0] if elements else Any
        nested = _generic_name(annotation)
        if nested:
            outer = "Optional" if field.optional else "List"
            nested = "list" if field.optional else nested
            raise refuse(
                f"invalid input field {field.name}: {outer} cannot have nested type {nested}",
                "declare a flat List, or dict for what has a structure",
            )
        field.repeated = True
        text = text.format("List[{}]")
    field.type = text.format(_type_name(annotation))
    return annotation


def _generic_name(annotation: Any) -> str:
    """The name of a generic type with arguments, or of a list; empty for any other type."""
    if annotation in _LISTS:
        return "list"
    origin = typing.get_origin(annotation)
    if origin is None or origin is typing.Literal:
        return ""
    if origin in _UNION_TYPES:
        return "Optional" if type(None) in typing.get_args(annotation) else "Union"
    return str(getattr(origin, "__name__", origin))


def _type_name(annotation: Any) -> str:
    if annotation is Any or annotation is inspect.Parameter.empty:
        return "Any"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "Literal[{}]".format(", ".join(map(repr, typing.get_args(annotation))))
    if origin is not None:
        return str(getattr(origin, "__name__", origin))
    return str(getattr(annotation, "__name__", annotation))


def _read_element(field: Input, annotation: Any, refuse: _Refuse) -> Converter:
    """Note the kind of a type, and return its converter."""
    origin = typing.get_origin(annotation)
    if origin is dict:
        annotation = dict
    try:
        plain = _PLAIN.get(annotation)
    except TypeError:  # not hashable, so none of them
        plain = None
    if plain:
        field.kind, convert = plain
        return convert
    if origin is typing.Literal:
        return _read_members(field, list(typing.get_args(annotation)), refuse)
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return _read_enum(field, annotation, refuse)
        if issubclass(annotation, cog_types.Secret):
            field.kind, field.secret = "Secret", True
            return values.to_made(values.to_str, annotation)
        if issubclass(annotation, cog_types.File):
            field.kind, field.open = "file", open_file
            return values.to_url
        if issubclass(annotation, os.PathLike):
            field.kind, field.open = "file", cog_types.Path if inspect.isabstract(annotation) else annotation
            return values.to_url
    raise refuse(
        f"invalid input field {field.name}: unsupported Cog type {_type_name(annotation)}", f"declare one of: {_KNOWN}"
    )


def open_file(path: str) -> Any:
    return open(path, "rb")


def _read_enum(field: Input, kind: type[enum.Enum], refuse: _Refuse) -> Converter:
    members = [member.value for member in kind]
    for base in (str, int):
        if members and all(type(member) is base for member in members) and not issubclass(kind, base):
            raise refuse(
                f"enum {kind.__name__} is used as {base.__name__} but does not extend it",
                f"write class {kind.__name__}({base.__name__}, Enum)",
            )
    return values.to_made(_read_members(field, members, refuse), kind)


def _read_members(field: Input, members: list[Any], refuse: _Refuse) -> Converter:
    field.choices = members
    if members and all(isinstance(member, str) for member in members):
        field.kind = "str"
        return values.to_text_choice(members)
    if members and all(isinstance(member, int) and not isinstance(member, bool) for member in members):
        field.kind = "int"
        return values.to_choice(values.to_int, members)
    raise refuse(
        f"invalid input field {field.name}: the values of {field.type} are not all str or all int",
        "use members of one of these types",
    )


def _constrain(field: Input, convert: Converter, refuse: _Refuse) -> Converter:
    info, kind = field.info, field.kind
    bounded = info.ge is not None or info.le is not None
    sized = info.min_length is not None or info.max_length is not None
    for name, types_ in _LIMITS.items():
        limit = getattr(info, name)
        if limit is not None and (not isinstance(limit, types_) or isinstance(limit, bool)):
            raise refuse(f"{name}={limit!r} is not {_type_name(types_[0])}: {field.shown}", "mend the constraint")
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
    choices = field.info.choices or []
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


def _read_default(field: Input, base: Converter, refuse: _Refuse) -> None:
    info = field.info
    if info.default_factory is not None:
        field.factory = info.default_factory
        return
    default = info.default
    if default is MISSING:
        field.required = not field.optional
        return
    if default is None:
        if not field.optional and field.kind != "Any":
            raise refuse(
                "error-prone usage of default=None",
                f"write {field.name}: Optional[{field.type}] for an input that may be null, or give another default",
            )
        return
    if field.secret and isinstance(default, str):
        default = base(default)
    if field.kind in ("bool", "int", "float", "str") and not isinstance(default, enum.Enum):
        default = _fit_default(field, default, base, refuse)
    field.default = default
    if isinstance(default, (list, dict, set)):
        field.factory = lambda: copy.deepcopy(default)


def _fit_default(field: Input, default: Any, base: Converter, refuse: _Refuse) -> Any:
    shown = f"default={default!r}"
    if field.repeated and isinstance(default, (tuple, set)):
        default = list(default)
    if field.choices is None:
        # Before the type: a default of another type than the input's is told as such.
        try:
            default = base(default)
        except Unfit:
            raise refuse(
                f"{shown} is not of the type of input: {field.shown}", f"give a default of type {field.type}"
            ) from None
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


def _check_output(function: _Function) -> None:
    returned = function.returned()
    name = function.shown
    if returned is None or returned is type(None):
        raise function.refused(f"{name} must not return None", "declare what it returns, -> str say")
    origin = typing.get_origin(returned)
    if origin in _UNION_TYPES and type(None) in typing.get_args(returned):
        raise function.refused("output must not be Optional", "declare the type without Optional, or Any")
    bare = origin or returned
    if not isinstance(bare, type):
        return
    arguments = [a for a in typing.get_args(returned) if not isinstance(a, typing.TypeVar)]
    if bare in (*_ITERATORS, *_CONCATENATING) and not arguments:
        raise function.refused("iterator type must have a type argument", f"write {bare.__name__}[str]")
    if bare in _CONCATENATING and arguments[0] is not str:
        raise function.refused(f"{bare.__name__} must have str element", f"write {bare.__name__}[str], or Iterator[…]")


# -- places


def _place(function: Any) -> tuple[Optional[str], Optional[int]]:
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    if code is None:
        return None, None
    return _relative(code.co_filename), code.co_firstlineno


def _relative(file: str) -> str:
    """A path as a person in the model's folder would write it."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


def _line_of(function: types.FunctionType, parameter: str) -> Optional[int]:
    code = function.__code__
    try:
        with open(code.co_filename, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                    if argument.arg == parameter:
                        return argument.lineno
    return None
