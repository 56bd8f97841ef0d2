"""A predictor's OpenAPI document: the form in which other programs know a model's inputs and output.

It must not know values, nor how they are checked. The paths are those of Cog's HTTP API, which the document has always
named; nothing of this project serves them.
"""

from __future__ import annotations

import enum
import os
import sys
import typing
from typing import Any, Optional

from .. import types as cog_types
from ..input import MISSING
from .functions import EMPTY
from .signature import CONCATENATING, ITERATORS, Input, Signature
from .structures import LISTS, MAPPINGS, SETS, bare, element_of, is_pydantic, is_typed_dict

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    dict: {"type": "object"},
}
_FILE = {"type": "string", "format": "uri"}
_SECRET = {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}
_COMPONENTS = {
    *("Input", "Output", "PredictionRequest", "PredictionResponse", "Status", "WebhookEvent"),
    *("HTTPValidationError", "ValidationError"),
}
_EVENTS = ("start", "output", "logs", "completed")
_STATUSES = ("starting", "processing", "succeeded", "canceled", "failed")


def openapi(signature: Signature) -> Schema:
    """The whole document, of JSON's own types."""
    components: Schema = {"Input": _inputs(signature.inputs), "Output": _output(signature.returns), **_frame()}
    for field in signature.inputs:
        if field.choices is not None:
            components[_component(field)] = {
                "title": field.name,
                "description": "An enumeration.",
                "enum": field.choices,
                "type": "integer" if field.kind == "int" else "string",
            }
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": _paths(),
        "components": {"schemas": components},
    }


# -- inputs


def _inputs(fields: list[Input]) -> Schema:
    schema: Schema = {"title": "Input", "type": "object"}
    required = [field.name for field in fields if field.required]
    if required:
        schema["required"] = required
    schema["properties"] = {field.name: _input(field, order) for order, field in enumerate(fields)}
    return schema


def _input(field: Input, order: int) -> Schema:
    info = field.info
    choices = None if field.choices is None else {"$ref": f"#/components/schemas/{_component(field)}"}
    if choices is not None and not field.repeated:
        schema: Schema = {"allOf": [choices]}
    else:
        element = choices or dict(_type(field.element))
        element.update(_limits(field))
        schema = {"type": "array", "items": element} if field.repeated else element
        schema["title"] = _title(field.name)
    schema["x-order"] = order
    if info.description is not None:
        schema["description"] = str(info.description)
    if info.default_factory is None and info.default is not MISSING and info.default is not None:
        default = _plain(info.default)
        if default is not None and not field.secret:
            schema["default"] = default
    if info.deprecated:
        schema["deprecated"] = True
    if info.accept is not None:
        schema["x-cog-accept"] = info.accept if isinstance(info.accept, str) else list(info.accept)
    if field.optional:
        schema["nullable"] = True
    return schema


def _component(field: Input) -> str:
    """The name of the component with an input's choices: the input's, unless another component has it."""
    return f"{field.name}Choices" if field.name in _COMPONENTS else field.name


def _limits(field: Input) -> Schema:
    info = field.info
    limits = {
        "minimum": info.ge,
        "maximum": info.le,
        "minLength": info.min_length,
        "maxLength": info.max_length,
        "pattern": info.regex,
    }
    # An infinite one has no form in JSON.
    return {name: limit for name, limit in limits.items() if _plain(limit) is not None}


def _title(name: str) -> str:
    return name.replace("_", " ").title()


def _plain(value: Any) -> Any:
    """A default as JSON has it; None for one that has no form in JSON."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and value - value != 0:
        return None
    return value if isinstance(value, (bool, int, float, str)) else None


# -- types


def _output(returned: Any) -> Schema:
    returned, opaque = bare(returned)
    kind = typing.get_origin(returned) or returned
    if not opaque and kind in (*ITERATORS, *CONCATENATING):
        schema: Schema = {"type": "array", "items": _type(element_of(returned)), "x-cog-array-type": "iterator"}
        if kind in CONCATENATING:
            schema["x-cog-array-display"] = "concatenate"
    else:
        schema = {} if opaque else dict(_type(returned))
    return {**schema, "title": "Output"}


def _type(annotation: Any, within: tuple[Any, ...] = ()) -> Schema:
    """A type's schema; empty for what may be anything."""
    annotation, opaque = bare(annotation)
    if opaque or annotation is Any or annotation is EMPTY:
        return {"type": "object"} if opaque else {}
    arguments = typing.get_args(annotation)
    if type(None) in arguments:
        members = [member for member in arguments if member is not type(None)]
        return {**(_type(members[0], within) if len(members) == 1 else {}), "nullable": True}
    kind = typing.get_origin(annotation) or annotation
    if kind is typing.Literal:
        return {"type": "string" if isinstance(arguments[0], str) else "integer", "enum": list(arguments)}
    if kind in LISTS or kind in SETS or kind is tuple:
        schema: Schema = {"type": "array", "items": _type(element_of(annotation), within)}
        return {**schema, "uniqueItems": True} if kind in SETS else schema
    if kind in MAPPINGS:
        values = _type(arguments[1], within) if len(arguments) == 2 else {}
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    return _class(kind, within) if isinstance(kind, type) else {}


def _class(kind: Any, within: tuple[Any, ...]) -> Schema:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if issubclass(kind, enum.Enum):
        members = [member.value for member in kind]
        return {"type": "string" if all(isinstance(member, str) for member in members) else "integer", "enum": members}
    if issubclass(kind, cog_types.Secret):
        return _SECRET
    if issubclass(kind, (cog_types.File, os.PathLike)):
        return _FILE
    fields = None if kind in within else _fields(kind)
    if fields is None:
        return {"type": "object"}
    properties = {name: _field(name, hint, default, (*within, kind)) for name, (hint, default, _) in fields.items()}
    schema: Schema = {"title": kind.__name__, "type": "object", "properties": properties}
    required = [name for name, (_, _, is_required) in fields.items() if is_required]
    return {**schema, "required": required} if required else schema


def _field(name: str, hint: Any, default: Any, within: tuple[Any, ...]) -> Schema:
    schema = {"title": _title(name), **_type(hint, within)}
    default = None if isinstance(default, (list, tuple, set, frozenset, dict)) else _plain(default)
    if default is not None and "x-cog-secret" not in schema:
        schema["default"] = default
    return schema


def _fields(kind: Any) -> Optional[dict[str, tuple[Any, Any, bool]]]:
    """The fields of a class with type, default, and whether they are required; None where they are not known.

    What stands for no default has no form in JSON.
    """
    if is_pydantic(kind):
        declared = getattr(kind, "model_fields", None) or kind.__fields__
        return {
            name: (
                field.annotation if hasattr(field, "annotation") else field.outer_type_,
                field.default,
                bool(field.is_required() if hasattr(field, "is_required") else field.required),
            )
            for name, field in declared.items()
        }
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # what they name is only there for type checkers: the output is an object all the same
        return None
    if is_typed_dict(kind):
        return {name: (hint, None, name in kind.__required_keys__) for name, hint in hints.items()}
    if hasattr(kind, "__dataclass_fields__"):
        dataclasses = sys.modules["dataclasses"]
        missing = dataclasses.MISSING
        return {
            f.name: (hints.get(f.name, Any), f.default, f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(kind)
        }
    return None


# -- what is the same for all models


def _frame() -> Schema:
    moment = {"type": "string", "format": "date-time"}
    request = _object(
        "PredictionRequest",
        {
            "input": {"$ref": "#/components/schemas/Input"},
            "id": {"type": "string"},
            "created_at": moment,
            "output_file_prefix": {"type": "string"},
            "webhook": {"type": "string", "format": "uri", "minLength": 1, "maxLength": 65536},
        },
    )
    # The only property without a title, in Cog's documents too.
    request["properties"]["webhook_events_filter"] = {
        "type": "array",
        "items": {"$ref": "#/components/schemas/WebhookEvent"},
        "default": list(_EVENTS),
    }
    return {
        "PredictionRequest": request,
        "PredictionResponse": _object(
            "PredictionResponse",
            {
                "input": {"$ref": "#/components/schemas/Input"},
                "output": {"$ref": "#/components/schemas/Output"},
                "id": {"type": "string"},
                "version": {"type": "string"},
                "created_at": moment,
                "started_at": moment,
                "completed_at": moment,
                "logs": {"type": "string", "default": ""},
                "error": {"type": "string"},
                "status": {"$ref": "#/components/schemas/Status"},
                "metrics": {"type": "object"},
            },
        ),
        "Status": _enumeration("Status", _STATUSES),
        "WebhookEvent": _enumeration("WebhookEvent", _EVENTS),
        "HTTPValidationError": _object(
            "HTTPValidationError",
            {"detail": {"type": "array", "items": {"$ref": "#/components/schemas/ValidationError"}}},
        ),
        "ValidationError": {
            "title": "ValidationError",
            "type": "object",
            "required": ["loc", "msg", "type"],
            "properties": {
                "loc": {
                    "title": "Location",
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": {"title": "Message", "type": "string"},
                "type": {"title": "Error Type", "type": "string"},
            },
        },
    }


def _object(title: str, properties: Schema) -> Schema:
    titled = {
        name: schema if "$ref" in schema else {"title": _title(name), **schema} for name, schema in properties.items()
    }
    return {"title": title, "type": "object", "properties": titled}


def _enumeration(title: str, members: tuple[str, ...]) -> Schema:
    return {"title": title, "description": "An enumeration.", "type": "string", "enum": list(members)}


def _paths() -> Schema:
    id = {
        "name": "prediction_id",
        "in": "path",
        "required": True,
        "schema": {"title": "Prediction ID", "type": "string"},
    }
    prefer = {"name": "prefer", "in": "header", "required": False, "schema": {"title": "Prefer", "type": "string"}}
    request = {"$ref": "#/components/schemas/PredictionRequest"}
    body = {"content": _json(request)}
    needed = {"content": _json({"allOf": [request], "title": "Prediction Request"}), "required": True}
    answer = {"$ref": "#/components/schemas/PredictionResponse"}
    named = "/predictions/{prediction_id}"
    return {
        "/": {"get": _operation("Root", "root__get")},
        "/health-check": {"get": _operation("Healthcheck", "healthcheck_health_check_get")},
        "/predictions": {
            "post": _operation("Predict", "predict_predictions_post", [prefer], body, answer, refuses=True),
        },
        named: {
            "put": _operation(
                "Predict Idempotent",
                "predict_idempotent_predictions__prediction_id__put",
                [id, prefer],
                needed,
                answer,
                refuses=True,
            ),
        },
        f"{named}/cancel": {
            "post": _operation("Cancel", "cancel_predictions__prediction_id__cancel_post", [id], refuses=True),
        },
        "/shutdown": {"post": _operation("Start Shutdown", "start_shutdown_shutdown_post")},
    }


def _operation(
    summary: str,
    name: str,
    parameters: Optional[list[Schema]] = None,
    body: Optional[Schema] = None,
    answer: Optional[Schema] = None,
    refuses: bool = False,
) -> Schema:
    operation: Schema = {"summary": summary, "operationId": name}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = body
    anything = {"title": f"Response {name.replace('_', ' ').title()}"}
    operation["responses"] = {"200": _response("Successful Response", answer or anything)}
    if refuses:
        refusal = {"$ref": "#/components/schemas/HTTPValidationError"}
        operation["responses"]["422"] = _response("Validation Error", refusal)
    return operation


def _response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": _json(schema)}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
