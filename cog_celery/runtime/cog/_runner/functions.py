"""A function of the model's as its author wrote it: parameters, annotations, decorators taken off, and where it stands.

It must not know what the function is for. Read from the code object: Python's own `inspect` would be a seventh of a
runner's memory.
"""

from __future__ import annotations

import os
import sys
import types
import typing
from typing import Any, Optional

from .refusal import Refused
from .standard import import_standard

_VARIADIC, _VARIADIC_NAMED = 0x04, 0x08
_ASYNC = 0x80 | 0x200
"""The flags of a coroutine function and of an async generator function."""


class _Empty:
    """Where nothing was written; None is an annotation and a default."""

    def __repr__(self) -> str:
        return "EMPTY"


EMPTY = _Empty()


class Parameter:
    """One that has a name: `*args` and `**kwargs` are none."""

    __slots__ = ("annotation", "default", "name", "positional_only")

    def __init__(self, name: str, annotation: Any, default: Any, positional_only: bool) -> None:
        self.name = name
        self.annotation = annotation
        self.default = default
        self.positional_only = positional_only


def unwrap(function: Any) -> Any:
    """What functools.wraps and its like say stands behind a decorated function."""
    seen = set()
    while hasattr(function, "__wrapped__") and id(function) not in seen:
        seen.add(id(function))
        function = function.__wrapped__
    return function


def is_async(function: Any) -> bool:
    """Whether calling it makes a coroutine or an async generator. Decorators are not looked behind."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _ASYNC)


def static_attribute(kind: type, name: str) -> Any:
    """A class's attribute as it stands in a class body, bound to nothing; None where there is none."""
    for base in kind.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None


class Function:
    """A function behind all its decorators. Raises Refused for what is none."""

    def __init__(self, function: Any, shown: str, name: str) -> None:
        self.name = name
        self.shown = shown
        # A static or class method has no self, and is no function either; some Pythons would unwrap it to one.
        bare = callable(function) and not isinstance(function, (staticmethod, classmethod))
        self.function = unwrap(function) if bare else function
        if not isinstance(self.function, types.FunctionType):
            raise Refused(f"{name} is not a function", f"write def {name}(self, …) in the class", *place(function))
        self.file, self.line = place(self.function)
        self.is_async = is_async(function) or is_async(self.function)
        self.parameters, self._variadic, self._returned = _read(self.function)

    def refused(self, text: str, hint: str, parameter: Optional[str] = None) -> Refused:
        """A refusal that names this function's place, or its parameter's."""
        line = self.line if parameter is None else _line_of(self.function, parameter) or self.line
        return Refused(text, hint, self.file, line)

    def refuse_variadic(self, hint: str) -> None:
        """Raise Refused for parameters that an input cannot be given for by name."""
        if self._variadic:
            raise self.refused(f"{self.shown} must not have {self._variadic}", hint)
        if any(parameter.positional_only and parameter.name != "self" for parameter in self.parameters):
            raise self.refused(f"{self.shown} must not have positional-only arguments", "take out the `/`")

    def annotation(self, parameter: Parameter) -> Any:
        """A parameter's type, or EMPTY; raises Refused for text that names nothing."""
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
        """The type it is said to return; EMPTY when nothing is said, or it cannot be known."""
        try:
            return self._resolve(self._returned)
        except Exception:  # only imported for type checkers, say: nothing depends on it
            return EMPTY

    def _resolve(self, annotation: Any) -> Any:
        if annotation is EMPTY:
            return annotation
        if annotation is None:
            return None
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(holder, self.function.__globals__, include_extras=True)["it"]


def _read(function: types.FunctionType) -> tuple[list[Parameter], str, Any]:
    """The parameters by name, `*args` or `**kwargs` where there is one of them, and what stands behind the arrow."""
    if "__signature__" in function.__dict__:  # set by hand, by a decorator that makes functions
        return _read_signature(function)
    code = function.__code__
    annotations = _annotations(function)
    names = code.co_varnames
    count = code.co_argcount
    defaults = (EMPTY,) * (count - len(function.__defaults__ or ())) + (function.__defaults__ or ())
    named = function.__kwdefaults__ or {}
    parameters = [
        Parameter(name, annotations.get(name, EMPTY), default, index < code.co_posonlyargcount)
        for index, (name, default) in enumerate(zip(names[:count], defaults))
    ]
    parameters += [
        Parameter(name, annotations.get(name, EMPTY), named.get(name, EMPTY), False)
        for name in names[count : count + code.co_kwonlyargcount]
    ]
    variadic = "**kwargs" if code.co_flags & _VARIADIC_NAMED else "*args" if code.co_flags & _VARIADIC else ""
    return parameters, variadic, annotations.get("return", EMPTY)


def _read_signature(function: types.FunctionType) -> tuple[list[Parameter], str, Any]:
    inspect = import_standard("inspect")
    signature = inspect.signature(function)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    named = inspect.Parameter
    parameters = [
        Parameter(
            parameter.name,
            EMPTY if parameter.annotation is named.empty else parameter.annotation,
            EMPTY if parameter.default is named.empty else parameter.default,
            parameter.kind is named.POSITIONAL_ONLY,
        )
        for parameter in signature.parameters.values()
        if parameter.kind not in (named.VAR_KEYWORD, named.VAR_POSITIONAL)
    ]
    variadic = "**kwargs" if named.VAR_KEYWORD in kinds else "*args" if named.VAR_POSITIONAL in kinds else ""
    returned = signature.return_annotation
    return parameters, variadic, EMPTY if returned is inspect.Signature.empty else returned


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return dict(annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF))
    return function.__annotations__


# -- places


def place(function: Any) -> tuple[Optional[str], Optional[int]]:
    """The file, as a person in the model's folder would write it, and the line of a function."""
    function = getattr(function, "__func__", function)  # of a static or class method
    code = getattr(unwrap(function), "__code__", None) if callable(function) else None
    return (None, None) if code is None else (relative(code.co_filename), code.co_firstlineno)


def class_place(kind: type) -> tuple[Optional[str], Optional[int]]:
    """The file and the line of a class, as far as they can be known."""
    inspect = import_standard("inspect")
    try:
        return relative(inspect.getsourcefile(kind) or ""), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return None, None


def relative(file: str) -> str:
    """A path as a person in the model's folder would write it."""
    shorter = os.path.relpath(file)
    return file if shorter.startswith("..") else shorter


def _line_of(function: types.FunctionType, parameter: str) -> Optional[int]:
    code = function.__code__
    ast = import_standard("ast")
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
                        return int(argument.lineno)
    return None
