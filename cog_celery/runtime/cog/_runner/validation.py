"""An input object against a signature: the arguments for predict(), or what is wrong with it.

It must not know the predictor.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from ..types import MASK
from .signature import Input, Signature
from .values import URL_SCHEMES, Unfit

MAX_REPR = 1000
"""Characters of a refused value that an error shows."""


class Accepted:
    """Valid input: predict()'s arguments, the URLs still to be fetched, the names that nobody knows."""

    __slots__ = ("arguments", "files", "ignored", "urls")

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.urls: list[str] = []
        self.ignored: list[str] = []
        self.files: list[tuple[Input, list[Optional[str]]]] = []
        """The file inputs and their local paths; None for one that is to be fetched."""

    def add_file(self, field: Input, value: Any) -> None:
        """Note the URL, or URLs, of a file input."""
        urls = value if field.repeated else [value]
        self.urls += urls
        self.files.append((field, [None] * len(urls)))

    def fill(self, paths: list[str]) -> list[Any]:
        """Put local files in their places; returns those that were opened. `paths`: one for each URL, in order."""
        fetched = iter(paths)
        opened = []
        for field, local in self.files:
            made = [field.open(next(fetched) if path is None else path) for path in local]
            self.arguments[field.name] = made if field.repeated else made[0]
            opened += [file for file in made if hasattr(file, "close")]
        return opened


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
        for name, convert, optional, required, default, factory, file, field in self._fields:
            if name in given:
                known += 1
                value = given[name]
                if value is None:
                    if not optional:
                        errors.append(_field_error(field, Unfit("none"), value))
                    arguments[name] = None
                    continue
                try:
                    arguments[name] = value = convert(value)
                except Unfit as unfit:
                    errors.append(_field_error(field, unfit, value))
                    continue
                if file:
                    accepted.add_file(field, value)
            elif required:
                errors.append({"field": name, "kind": "missing", "limit": None, "value": ""})
            elif factory is not None:
                try:
                    arguments[name] = factory()
                except Exception as error:  # of the model's own code
                    errors.append(_field_error(field, Unfit("invalid", f"its default cannot be made: {error!r}"), None))
            elif file and default is not None:
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
        field.kind == "file",
        field,
    )


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
    elif unfit.kind == "url_scheme":
        # A URL may carry credentials: no more of it than its scheme, or what is no URL at all.
        shown = repr(f"{unfit.limit}:…") if unfit.limit else "[…]" if field.repeated else repr(value.partition("?")[0])
    else:
        shown = repr(value)
    if len(shown) > MAX_REPR:
        shown = shown[:MAX_REPR] + "…"
    return {"field": field.name, "kind": unfit.kind, "limit": unfit.limit, "value": shown}
