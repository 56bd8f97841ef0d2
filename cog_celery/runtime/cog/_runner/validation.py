"""An input object against a signature: the arguments for predict(), or what is wrong with it.

It must not know the predictor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Callable, Optional

from ..types import MASK
from .rendering import phrase, render_runtime
from .signature import Input, Signature
from .structures import Structures
from .values import URL_SCHEMES, Unfit

MAX_REPR = 1000
"""Characters of a refused value that an error shows."""


class Accepted:
    """Valid input: predict()'s arguments, the URLs still to be fetched, the names that nobody knows."""

    __slots__ = ("arguments", "closing", "files", "ignored", "urls")

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.urls: list[str] = []
        self.ignored: list[str] = []
        self.files: list[tuple[Input, Any]] = []
        """The inputs with files, in the order of `urls`. Of a file input its local paths, None for one that is to be
        fetched; of a structure what was given for it."""
        self.closing: list[Callable[[], object]] = []
        """To be called when the prediction is over."""

    def add_file(self, field: Input, value: Any) -> None:
        """Note the URL, or URLs, of a file input."""
        urls = value if field.repeated else [value]
        self.urls += urls
        self.files.append((field, [None] * len(urls)))

    def add_lazy(self, field: Input, value: Any) -> None:
        """Note files that the model fetches by itself."""
        for file in value if field.repeated else [value]:
            self.closing.append(file.discard if hasattr(file, "discard") else file.close)

    def fill(self, paths: list[str]) -> None:
        """Put local files in their places. `paths`: one for each URL, in order.

        Raises ValueError for a structure that cannot be built with its files.
        """
        fetched = iter(paths)
        for field, held in self.files:
            if field.structures is not None:
                self.arguments[field.name] = _build(field, held, field.structures, fetched)
                continue
            made = [field.open(next(fetched) if path is None else path) for path in held]
            self.arguments[field.name] = made if field.repeated else made[0]
            self.closing += [file.close for file in made if hasattr(file, "close")]

    def close(self) -> None:
        """Let go of what was opened. A file that cannot be closed or removed is of no more interest to anybody."""
        for close in self.closing:
            with suppress(Exception):
                close()


FieldErrors = list[dict[str, Any]]


class Validator:
    """Checks inputs in the order in which predict() declares them; made once for a predictor."""

    __slots__ = ("_fields", "_names")

    def __init__(self, signature: Signature) -> None:
        self._fields = [_compile(field) for field in signature.inputs]
        self._names = frozenset(field.name for field in signature.inputs)

    def validate(self, given: dict[str, Any]) -> tuple[Optional[Accepted], FieldErrors]:
        """What predict() is to be called with, or the field errors."""
        arguments: dict[str, Any] = {}
        accepted = Accepted(arguments)
        errors: FieldErrors = []
        known = 0
        for name, convert, optional, required, default, factory, special, field in self._fields:
            if name in given:
                known += 1
                value = given[name]
                if value is None:
                    if not optional:
                        errors.append(_field_error(field, Unfit("none"), value))
                    arguments[name] = None
                    continue
                try:
                    arguments[name] = made = convert(value)
                except Unfit as unfit:
                    errors.append(_field_error(field, unfit, value))
                    if field.structures is not None:
                        field.structures.take_urls()
                    continue
                if special:
                    _note(accepted, field, value, made)
            elif required:
                errors.append({"field": name, "kind": "missing", "limit": None, "value": ""})
            elif factory is not None:
                try:
                    arguments[name] = factory()
                except Exception as error:  # of the model's own code
                    errors.append(_field_error(field, Unfit("invalid", f"its default cannot be made: {error!r}"), None))
            elif special and default is not None:
                _default_file(accepted, field)
            else:
                arguments[name] = default
        if errors:
            return None, errors
        if known < len(given):
            accepted.ignored = [name for name in given if name not in self._names]
        return accepted, errors


_Compiled = tuple[str, Callable[[Any], Any], bool, bool, Any, Optional[Callable[[], Any]], bool, Input]


def _compile(field: Input) -> _Compiled:
    optional = field.optional or field.kind == "Any"
    return (
        field.name,
        field.convert,
        optional,
        field.required,
        field.default,
        field.factory,
        field.kind in ("file", "url") or field.structures is not None,
        field,
    )


def _note(accepted: Accepted, field: Input, given: Any, made: Any) -> None:
    """Note the files of an input that was just converted."""
    if field.kind == "file":
        accepted.add_file(field, made)
    elif field.structures is None:
        accepted.add_lazy(field, made)
    else:
        accepted.urls += field.structures.take_urls()
        accepted.files.append((field, given))


def _build(field: Input, given: Any, structures: Structures, paths: Iterator[str]) -> Any:
    """A structure with its files."""
    structures.paths = paths
    try:
        return field.convert(given)
    except Unfit as unfit:
        raise ValueError(render_runtime([_field_error(field, unfit, given)])) from None
    finally:
        structures.paths = None
        structures.take_urls()


def _default_file(accepted: Accepted, field: Input) -> None:
    """A default that is a URL is fetched like any other; one that is a path lies in the model's folder."""
    default = field.default
    if not isinstance(default, str):
        accepted.arguments[field.name] = default
    elif default.partition(":")[0].lower() in URL_SCHEMES:
        accepted.add_file(field, default)
    else:
        accepted.files.append((field, [default]))


def _field_error(field: Input, unfit: Unfit, value: Any) -> dict[str, Any]:
    if field.secret:
        shown = MASK
    elif field.kind in ("file", "url") or field.structures is not None:
        shown = _shown_urls(value)
    else:
        shown = _shown(value)
    kind, limit = unfit.kind, unfit.limit
    if unfit.at:  # the field is the input; what is wrong lies within
        limit = f"{'.'.join(unfit.at)}: {phrase(kind, limit)}"
        kind = "invalid"
    return {"field": field.name, "kind": kind, "limit": limit, "value": shown}


def _shown_urls(value: Any) -> str:
    """A URL may carry credentials: no more of it than its scheme, or what is no URL at all."""
    if isinstance(value, str):
        scheme, colon, _ = value.partition(":")
        return _shown(f"{scheme.lower()}:…" if colon else value.partition("?")[0])
    return "[…]" if isinstance(value, (list, dict)) else _shown(value)


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, or too deep
        return "…"
    return shown if len(shown) <= MAX_REPR else shown[:MAX_REPR] + "…"
