"""The OpenAPI description.  Written by hand, because the bodies are bytes that no framework could infer."""

from __future__ import annotations

from collections.abc import Sequence

from ... import __version__
from ...protocol import ITEM_BYTES, SAFETENSORS
from ...protocol.prompt_requests import PROMPT_PARAMETERS
from ...protocol.requests import DECODE_PARAMETERS, ENCODE_PARAMETERS
from .guess import guess_paths
from .openapi_keys import key_paths, pairing_paths
from .openapi_parameters import BOOLEAN, NUMBER, PARAMETERS, Schema, failures

_BYTES: Schema = {"type": "string", "format": "binary"}
_TENSOR_JSON: Schema = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "string", "contentEncoding": "base64"},
        "parameters": {"type": "object"},
    },
}
_TENSOR_HEADERS: Schema = {
    "shape": {"description": "The tensor's axes as a JSON list.", "schema": {"type": "string"}},
    "dtype": {"description": "The tensor's dtype.", "schema": {"type": "string", "enum": list(ITEM_BYTES)}},
    "channels-last": {
        "description": "True where the tensor lay channels-last in the server's memory; its bytes are in C order.",
        "schema": BOOLEAN,
    },
    "hybridge-model": {"description": "The model that answered.", "schema": {"type": "string"}},
    "hybridge-inferred": {
        "description": "What was inferred where the URL does not name a model, and why.",
        "schema": {"type": "string"},
    },
    "hybridge-warning": {
        "description": "Something about the request that deserves a look.",
        "schema": {"type": "string"},
    },
    "hybridge-findings": {
        "description": "Codes of these warnings, which docs/doctor.md lists; separated by `, `.",
        "schema": {"type": "string"},
    },
    "hybridge-plan": {
        "description": "How the engine ran: mode, peak_bytes on top of the weights, tflop.",
        "schema": {"type": "string"},
    },
    "hybridge-receipt": {
        "description": "What made the answer: model, weights, precision, libraries, as `name=value; …`.",
        "schema": {"type": "string"},
    },
    "hybridge-cache": {
        "description": "Of prompts: hit where the answer was kept from before, else miss.",
        "schema": {"type": "string", "enum": ["hit", "miss"]},
    },
    "server-timing": {"description": "Milliseconds of each stage.", "schema": {"type": "string"}},
}
_ERRORS = {
    "400": "The request is wrong.",
    "401": "This server wants a key.",
    "403": "This key may not do that.",
    "404": "No such model, job, key or path.",
    "405": "Another method is meant.",
    "408": "The body stopped coming.",
    "409": "The job is not done yet, or there is a key of this name.",
    "413": "A limit would be passed.",
    "415": "The body is neither a tensor nor a picture that is read here.",
    "429": "The waiting line is full, or too many bytes are coming in; Retry-After says when to come back.",
    "431": "The address and the headers are too large.",
    "500": "The engine failed.",
    "503": "The server is shutting down or has too many connections, or a model's weights cannot be had,"
    " or the disk that keeps long work cannot be written.",
    "504": "The request was not done within its Request-Timeout, or the server's own.",
    "507": "The device has no room for this request, or the disk that keeps long work is full.",
}
#: Errors of every path: invalid HTTP, a missing key, headers that are too slow or too large, too many connections.
_ANYWHERE = ("400", "401", "408", "431", "503")

#: Headers of every request for a job.
_WORK_HEADERS: list[Schema] = [
    {
        "name": "Prefer",
        "in": "header",
        "description": "respond-async: accept the request, answer 202 with a job, and do it later.",
        "schema": {"type": "string", "examples": ["respond-async"]},
    },
    {
        "name": "Request-Timeout",
        "in": "header",
        "description": "Time limit of the request in seconds.",
        "schema": NUMBER,
    },
]
_JOB_SCHEMA: Schema = {
    "type": "object",
    "required": ["id", "state", "made_at"],
    "properties": {
        "id": {"type": "string"},
        "state": {"enum": ["waiting", "loading", "running", "done", "failed", "cancelled"]},
        "made_at": {"type": "number", "description": "Seconds since 1970."},
        "position": {"type": "integer", "description": "How many are served before it, as it looks now."},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "eta_s": {"type": ["number", "null"], "description": "Seconds until it is done, as it looks now."},
        "events": {"type": "string", "description": "Where its events are."},
        "result": {"type": "string", "description": "Where its result is."},
        "expires_at": {"type": "number", "description": "Seconds since 1970; then it is forgotten."},
    },
}
#: The schema of one event in the stream.
_EVENT_SCHEMA: Schema = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": _JOB_SCHEMA["properties"]["state"],
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": _JOB_SCHEMA},
    },
}
_ERROR_SCHEMA: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {name: {"type": "string"} for name in ("error", "code", "cause", "saw", "expected", "try")},
}

_TENSOR_BODIES: Schema = {
    "tensor/binary": {"schema": _BYTES},
    "tensor/base64": {"schema": _TENSOR_JSON},
    "application/json": {"schema": _TENSOR_JSON},
}
#: Latents with a picture and a mask.
_DECODE_BODIES: Schema = {**_TENSOR_BODIES, SAFETENSORS: {"schema": _BYTES}}
_PICTURE_BODIES: Schema = {f"image/{name}": {"schema": _BYTES} for name in ("png", "jpeg", "webp")}
_VIDEO_BODIES: Schema = {name: {"schema": _BYTES} for name in ("video/mp4", "video/webm", "image/gif")}
_TENSOR_ANSWERS: Schema = {"tensor/binary": {"schema": _BYTES}, "tensor/base64": {"schema": _TENSOR_JSON}}
_DECODE_ANSWERS: Schema = {
    **_PICTURE_BODIES,
    **_TENSOR_ANSWERS,
    **_VIDEO_BODIES,
    "multipart/mixed": {"schema": _BYTES},
}


def describe(vaes: Sequence[str], texts: Sequence[str] = (), *, pairs: bool = False) -> Schema:
    """Return the document for a server with these models: those with a VAE, and those with text encoders.

    ``pairs`` says whether the server gives keys for invitations.
    """
    model = _model(list(dict.fromkeys((*vaes, *texts))))
    inferred = _operation(
        "Decode or encode; task and model follow from what is sent",
        [*DECODE_PARAMETERS, *(name for name in ENCODE_PARAMETERS if name not in DECODE_PARAMETERS)],
        {**_DECODE_BODIES, **_PICTURE_BODIES, **_VIDEO_BODIES},
        _DECODE_ANSWERS,
    )
    decode = _operation("Latents to a picture", DECODE_PARAMETERS, _DECODE_BODIES, _DECODE_ANSWERS)
    encode = _operation(
        "A picture or a video to latents",
        ENCODE_PARAMETERS,
        {**_PICTURE_BODIES, **_VIDEO_BODIES, **_TENSOR_BODIES},
        _TENSOR_ANSWERS,
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hybridge",
            "version": __version__,
            "description": "VAEs and text encoders over HTTP, compatible with the clients of Hybrid Inference.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/": {"get": _information("What this server is"), "post": {**inferred, "operationId": "infer"}},
            "/predict": {"post": {**inferred, "operationId": "predict"}},
            "/v1/models": {"get": _information("The models, and the choices made for them")},
            "/v1/models/{model}": {"get": _information("One model", "404"), "parameters": [model]},
            **(
                {
                    "/v1/{model}/decode": {
                        "post": {**decode, "operationId": "decode"},
                        "parameters": [_model(vaes)],
                    },
                    "/v1/{model}/encode": {
                        "post": {**encode, "operationId": "encode"},
                        "parameters": [_model(vaes)],
                    },
                }
                if vaes
                else {}
            ),
            **(_prompts(texts) if texts else {}),
            **(guess_paths(_TENSOR_BODIES) if vaes else {}),
            **_jobs(),
            **key_paths(_ANYWHERE),
            **(pairing_paths(_ANYWHERE) if pairs else {}),
            "/health": {"get": _information("Whether the process answers")},
            "/ready": {"get": _information("Whether work is taken")},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _information("This document")},
        },
        # Only where the server has keys; an old client that can set no header puts one into the address.
        "security": [{"bearer": []}, {"basic": []}, {"query": []}, {}],
        "components": {
            "responses": {
                f"Error{status}": {
                    "description": description,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
                for status, description in _ERRORS.items()
            },
            "schemas": {"Error": _ERROR_SCHEMA, "Job": _JOB_SCHEMA},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "The key as user or as password."},
                "query": {"type": "apiKey", "in": "query", "name": "key"},
            },
        },
    }


def _model(names: Sequence[str]) -> Schema:
    return {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": list(names)}}


def _prompts(texts: Sequence[str]) -> Schema:
    prompt: Schema = {"type": ["string", "array", "null"], "items": {"type": "string"}, "minItems": 1}
    request: Schema = {
        "type": "object",
        "required": ["prompt"],
        "properties": {"prompt": prompt, "negative_prompt": prompt},
        "description": "What the pipeline's __call__ takes about text; /v1/models lists the options of each model.",
    }
    form: Schema = {
        "type": "object",
        "required": ["request"],
        "properties": {"request": request, "image": {"type": "array", "items": _BYTES}},
    }
    operation = _operation("Prompts to text embeddings", PROMPT_PARAMETERS, {}, {})
    operation["operationId"] = "prompt"
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": request}, "multipart/form-data": {"schema": form}},
    }
    answers = (SAFETENSORS, "tensor/binary", "application/octet-stream")
    operation["responses"]["200"]["content"] = {answer: {"schema": _BYTES} for answer in answers}
    t5 = {**operation, "operationId": "t5", "summary": "SD.Next's remote T5", "parameters": []}
    t5["parameters"] = [one for one in operation["parameters"] if one["name"] == "dtype"]
    texts_alone: Schema = {"type": ["string", "array"], "items": {"type": "string"}, "minItems": 1}
    t5["requestBody"] = {"required": True, "content": {"application/json": {"schema": texts_alone}}}
    return {
        "/v1/{model}/prompt": {"post": operation, "parameters": [_model(texts)]},
        "/te": {"post": t5},
    }


_ACCEPTED: Schema = {
    "description": "Accepted, and done later.",
    "headers": {"location": {"description": "The job.", "schema": {"type": "string"}}},
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}},
}


def _jobs() -> Schema:
    job = {"name": "job", "in": "path", "required": True, "schema": {"type": "string"}}
    status: Schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}
    unknown = failures(*_ANYWHERE, "404", "405", "500")
    failed = failures(*_ERRORS)
    return {
        "/v1/jobs/{job}": {
            "parameters": [job],
            "get": {
                "summary": "How a job stands",
                "responses": {"200": {"description": "Its status", "content": status}, **unknown},
            },
            "delete": {
                "summary": "Stop a job and forget it",
                "responses": {"204": {"description": "It is forgotten."}, **unknown},
            },
        },
        "/v1/jobs/{job}/events": {
            "parameters": [job],
            "get": {
                "summary": "A job's status whenever it changes, until it is over",
                "responses": {
                    "200": {
                        "description": "Server-sent events, each named after the state, its data the status.",
                        "content": {"text/event-stream": {"schema": _EVENT_SCHEMA}},
                    },
                    **unknown,
                },
            },
        },
        "/v1/jobs/{job}/result": {
            "parameters": [job],
            "get": {
                "summary": "The response that the request would have had at once, be it a failure",
                "responses": {
                    "200": {"description": "The answer", "headers": _TENSOR_HEADERS, "content": _DECODE_ANSWERS},
                    **failed,
                },
            },
        },
        "/v1/jobs/{job}/again": {
            "parameters": [job],
            "post": {
                "summary": "The same body once more; parameters that are given replace those of before",
                "responses": {"202": _ACCEPTED, **failed},
            },
        },
    }


def _operation(summary: str, parameters: Sequence[str], bodies: Schema, answers: Schema) -> Schema:
    return {
        "summary": summary,
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": PARAMETERS[name][0],
                "schema": PARAMETERS[name][1],
                "explode": True,
            }
            for name in parameters
        ]
        + _WORK_HEADERS,
        "requestBody": {
            "required": True,
            "description": "A tensor's elements in C order, little-endian, without a header; or the same in base64"
            " inside JSON; or a picture or video file; or, for a decoder that is shown what was inpainted,"
            " a safetensors file with `latents`, `image` and `mask`. Without a Content-Type, the content decides.",
            "content": bodies,
        },
        "responses": {
            "200": {"description": "The answer", "headers": _TENSOR_HEADERS, "content": answers},
            "202": _ACCEPTED,
            **failures(*_ERRORS),
        },
    }


def _information(summary: str, *errors: str) -> Schema:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}},
            **failures(*_ANYWHERE, *errors, "405", "500"),
        },
    }


def _metrics() -> Schema:
    text = {"text/plain": {"schema": {"type": "string"}}}
    described = _information("Numbers for Prometheus")
    described["responses"]["200"]["content"] = text
    return described
