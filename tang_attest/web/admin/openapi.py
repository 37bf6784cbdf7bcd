"""The OpenAPI 3.1 document of the admin API, generated from the server's routing table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema

from tang_attest.ports.admin import Scope
from tang_attest.web.admin.operation import CSV, JSON, TEXT, Operation
from tang_attest.web.admin.wire import Problem
from tang_attest.web.wire import Body

_REFERENCE: Final = "#/components/schemas/{model}"

_ABOUT: Final = (
    "For programs that manage reference values: a build pipeline stages the values of an image before it is rolled "
    "out.  Every request carries a bearer token made with `tang-attest admin-token create`.  Without a valid one the "
    "answer is 401, whatever was asked.  Every error is a problem of RFC 9457 whose `code` never changes its meaning."
)

_REFUSALS: Final = {
    400: "The request cannot be read; the problem names the member.",
    401: "No valid token.",
    403: "The token lacks the scope or is not for the policy, or what was asked is refused.",
    404: "What was named does not exist.",
    408: "The body did not come in time.",
    409: "The state of the world forbids it; nothing changed.",
    413: "The body is too large.",
    415: "The body has another media type.",
    429: "Too many requests; Retry-After has the seconds to wait.",
    500: "A defect of the server.",
    503: "The server's database is away; nothing changed, trying again is safe.",
}


class _Schemas(GenerateJsonSchema):
    """Generate the same schemas with each pydantic since 2.10."""

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        """Return *schema* of an object; before 2.11 nothing said that any value may be in it."""
        found = super().dict_schema(schema)
        return found if "patternProperties" in found else {"additionalProperties": True} | found

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        """Return *schema* of a number, with 1 for a bound that older versions write as 1.0."""
        found = super().float_schema(schema)
        return {
            key: int(value) if isinstance(value, float) and value.is_integer() else value
            for key, value in found.items()
        }


def document(operations: Sequence[Operation], url: str) -> dict[str, Any]:
    """Return the document of *operations*, served below the path *url*."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tang-attest admin API", "version": "1", "description": _ABOUT},
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "responses": {str(status): _refusal(text) for status, text in _REFUSALS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": _scopes()}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    answers = {
        str(status): {"description": "Done.", "content": _content(model)}
        for status, model in operation.answers.items()
    }
    refusals = {str(status): {"$ref": f"#/components/responses/{status}"} for status in _statuses(operation)}
    entry: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the scope `{operation.scope.value}`.",
        "parameters": [*_parameters(operation.parameters, "path"), *_parameters(operation.query, "query")],
        "responses": answers | refusals,
    }
    if operation.body is not None:
        content: dict[str, Any] = {JSON: {"schema": _named(operation.body)}}
        if operation.text:
            content[TEXT] = {"schema": {"type": "string"}}
        entry["requestBody"] = {"required": True, "content": content}
    return entry


def _content(model: type[BaseModel] | type[str]) -> dict[str, Any]:
    if issubclass(model, str):
        return {CSV: {"schema": {"type": "string"}}}
    return {JSON: {"schema": _named(model)}}


def _statuses(operation: Operation) -> list[int]:
    """Return the refusals of *operation*."""
    impossible = set()
    if operation.method == "GET":
        impossible.add(409)
    if operation.body is None:
        impossible.add(415)
    return [status for status in _REFUSALS if status not in impossible]


def _parameters(model: type[Body], place: str) -> list[dict[str, Any]]:
    schema = model.model_json_schema(ref_template=_REFERENCE, schema_generator=_Schemas)
    required = schema.get("required", [])
    return [
        {"name": name, "in": place, "required": name in required, "schema": _parameter(member)}
        # Words of one parameter have commas in between.
        | ({"style": "form", "explode": False} if member.get("type") == "array" else {})
        for name, member in schema.get("properties", {}).items()
    ]


def _parameter(member: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter; an optional one is left out, because JSON's null has no form in an address."""
    kept = {key: value for key, value in member.items() if key not in ("title", "anyOf")}
    if "anyOf" not in member:
        return kept
    (given,) = (kind for kind in member["anyOf"] if kind != {"type": "null"})
    return {**given, **{key: value for key, value in kept.items() if value is not None}}


def _schemas(operations: Sequence[Operation]) -> dict[str, Any]:
    taken: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
    for operation in operations:
        if operation.body is not None:
            taken[operation.body] = "validation"
        models = (model for model in operation.answers.values() if not issubclass(model, str))
        taken |= dict.fromkeys(models, "serialization")
    _, schema = models_json_schema(list(taken.items()), ref_template=_REFERENCE, schema_generator=_Schemas)
    definitions: dict[str, Any] = schema["$defs"]
    return dict(sorted(definitions.items()))


def _named(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _refusal(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/problem+json": {"schema": _named(Problem)}}}


def _scopes() -> str:
    return f"A token has one or more of the scopes {', '.join(f'`{scope.value}`' for scope in Scope)}."
