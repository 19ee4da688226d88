"""What the OpenAPI description says about keys."""

from __future__ import annotations

from collections.abc import Sequence

from .openapi_parameters import Schema, failures

_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._@-]{1,64}$"}
_KEY: Schema = {
    "type": "object",
    "required": ["name", "admin"],
    "properties": {"name": _NAME, "admin": {"type": "boolean", "description": "Whether it may manage keys."}},
}
_NEW_KEY: Schema = {
    **_KEY,
    "required": ["name", "admin", "key"],
    "properties": {**_KEY["properties"], "key": {"type": "string", "description": "Shown this once."}},
}
_LIST: Schema = {"type": "object", "required": ["keys"], "properties": {"keys": {"type": "array", "items": _KEY}}}
_REQUEST: Schema = {**_KEY, "required": ["name"], "additionalProperties": False}


def key_paths(anywhere: Sequence[str]) -> Schema:
    """Return the paths for keys.

    Args:
        anywhere: The statuses of errors that every path may have.
    """
    refused = failures(*anywhere, "403", "404", "405", "500")
    return {
        "/v1/keys": {
            "get": {
                "summary": "The names of the keys; for admins",
                "responses": {"200": _answer("The keys", _LIST), **refused},
            },
            "post": {
                "summary": "A new key; for admins",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}},
                "responses": {"201": _answer("The key", _NEW_KEY), **refused, **failures("409", "413")},
            },
        },
        "/v1/keys/{name}": {
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": _NAME}],
            "delete": {
                "summary": "Revoke a key; for admins",
                "responses": {"204": {"description": "It is refused from now on."}, **refused},
            },
        },
    }


def pairing_paths(anywhere: Sequence[str]) -> Schema:
    """Return the path by which an invited machine gets a key.

    Args:
        anywhere: The statuses of errors that every path may have.
    """
    request: Schema = {
        "type": "object",
        "required": ["token", "name"],
        "properties": {"token": {"type": "string"}, "name": _NAME},
        "additionalProperties": False,
    }
    answer: Schema = {
        "type": "object",
        "required": ["name", "key"],
        "properties": {"name": _NAME, "key": {"type": "string"}},
    }
    return {
        "/v1/pair": {
            "post": {
                "summary": "A key for the token of an invitation, once",
                "security": [{}],
                "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
                "responses": {
                    "201": _answer("The key", answer),
                    **failures(*anywhere, "403", "405", "413", "500"),
                },
            },
        },
    }


def _answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
