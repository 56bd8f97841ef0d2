"""The two ways in which refused inputs are said to people: one structured error, two renderings.

It must not know where an error came from; the worker imports it too, from its own interpreter.

An error is a field error as docs/runner-protocol.md has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FieldError = Mapping[str, Any]

# Sentence and type, as the queue's consumers know them from pydantic 1.
_QUEUE: dict[str, tuple[str, str]] = {
    "missing": ("field required", "value_error.missing"),
    "none": ("none is not an allowed value", "type_error.none.not_allowed"),
    "integer": ("value is not a valid integer", "type_error.integer"),
    "float": ("value is not a valid float", "type_error.float"),
    "bool": ("value could not be parsed to a boolean", "type_error.bool"),
    "str": ("str type expected", "type_error.str"),
    "list": ("value is not a valid list", "type_error.list"),
    "dict": ("value is not a valid dict", "type_error.dict"),
    "ge": (
        "ensure this value is greater than or equal to {limit}",
        "value_error.number.not_ge; limit_value={limit}",
    ),
    "le": (
        "ensure this value is less than or equal to {limit}",
        "value_error.number.not_le; limit_value={limit}",
    ),
    "min_length": (
        "ensure this value has at least {limit} characters",
        "value_error.any_str.min_length; limit_value={limit}",
    ),
    "max_length": (
        "ensure this value has at most {limit} characters",
        "value_error.any_str.max_length; limit_value={limit}",
    ),
    "regex": ('string does not match regex "{limit}"', "value_error.str.regex; pattern={limit}"),
    "url_scheme": (
        "'{limit}' is not a valid URL scheme. 'data', 'http', or 'https' is supported.",
        "value_error",
    ),
    "invalid": ("{limit}", "value_error"),
}

_RUNTIME: dict[str, str] = {
    "none": "must not be null",
    "integer": "is not a valid int",
    "float": "is not a valid float",
    "bool": "is not a valid bool",
    "str": "is not a valid str",
    "list": "is not a valid list",
    "dict": "is not a valid dict",
    "min_length": "fails constraint len() >= {limit}",
    "max_length": "fails constraint len() <= {limit}",
    "regex": "does not match regex {limit!r}",
    "choices": "does not match choices {limit!r}",
    "url_scheme": "is no URL of scheme data, http or https",
}


def render_queue(errors: Iterable[FieldError]) -> str:
    """As the queue's consumers know it: a header, then two lines for each field."""
    listed = list(errors)
    lines = [f"{len(listed)} validation error{'' if len(listed) == 1 else 's'} for Input"]
    for error in listed:
        lines += [error["field"], f"  {_queue_sentence(error)}"]
    return "\n".join(lines)


def _queue_sentence(error: FieldError) -> str:
    kind, limit = error["kind"], error["limit"]
    if kind == "choices":
        permitted = ", ".join(map(repr, limit))
        members = ", ".join(f"<{error['field']}.{choice}: {choice!r}>" for choice in limit)
        sentence = f"value is not a valid enumeration member; permitted: {permitted}"
        return f"{sentence} (type=type_error.enum; enum_values=[{members}])"
    sentence, kind = _QUEUE[kind]
    return f"{sentence.format(limit=limit)} (type={kind.format(limit=limit)})"


def render_runtime(errors: Iterable[FieldError]) -> str:
    """A line for each field."""
    return "\n".join(map(_runtime_line, errors))


def phrase(kind: str, limit: Any) -> str:
    """What is wrong with a value, behind the name of the value."""
    if kind == "missing":
        return "field required"
    if kind == "invalid":
        return str(limit)
    if kind in ("ge", "le"):
        return f"fails constraint {'>=' if kind == 'ge' else '<='} {limit if limit is None else float(limit)}"
    return _RUNTIME[kind].format(limit=limit)


def _runtime_line(error: FieldError) -> str:
    field, kind, limit = error["field"], error["kind"], error["limit"]
    if kind == "missing":
        return f"missing required input field: {field}"
    if kind == "invalid":
        return f"invalid input value: {field}: {limit}"
    return f"invalid input value: {field}={error['value']} {phrase(kind, limit)}"
