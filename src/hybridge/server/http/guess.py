"""The handler of ``/v1/guess``: which model's latents are these, and in which space?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import TooLarge
from ...models import CATALOGUE
from ...models.doctor.guess import Guess, guesses
from ...protocol import DecodeRequest, read_request
from .media_threads import MediaThreads
from .openapi_parameters import PARAMETERS, Schema, failures
from .request_body import BodyReader
from .request_headers import query_of
from .served_models import ServedModels

#: The parameters of a request.
GUESS_PARAMETERS = ("shape", "dtype", "height", "width")

#: Most numbers of which statistics are taken: two films of 81 frames of 480×832, by Wan's VAE.
MOST_ELEMENTS = 2**22


class GuessRoute:
    """The handler.

    Args:
        served: The models of this server, which come before others that fit as well.
        body_reader: Reads request bodies.
        media: Threads, in which the statistics are computed.
    """

    def __init__(self, served: ServedModels, body_reader: BodyReader, media: MediaThreads) -> None:
        self._served = served
        self._body_reader = body_reader
        self._media = media

    async def guess(self, request: Request) -> Response:
        """POST /v1/guess: latents as for a decode; answers what they may be, the likeliest first."""
        async with self._body_reader.body(request) as body:
            headers = {"content-type": request.headers.get("content-type", "")}
            found = await self._media.run(self._guesses, query_of(request), headers, body)
        return JSONResponse({"guesses": found})

    def _guesses(self, query: str, headers: dict[str, str], body: bytes) -> list[dict[str, Any]]:
        sent = read_request(query, headers, body, "decode")
        assert isinstance(sent, DecodeRequest)  # noqa: S101 - as the task says
        elements = math.prod(sent.latents.shape)
        if elements > MOST_ELEMENTS:
            raise TooLarge(
                "too many numbers to guess by",
                saw=elements,
                expected=f"at most {MOST_ELEMENTS}",
                hint="the first item of the batch",
            )
        served = self._served.vaes
        others = [spec for name, spec in CATALOGUE.items() if name not in served and name != "starter"]
        latents = sent.latents.to_numpy()
        with np.errstate(all="ignore"):  # NaN and infinity are no model's, which is the answer
            found = [guesses(latents, sent.height, sent.width, specs) for specs in (list(served.values()), others)]
        return [_described(guess, is_served=group is found[0]) for group in found for guess in group]


def _described(guess: Guess, *, is_served: bool) -> dict[str, Any]:
    return {
        "model": guess.spec.name,
        "title": guess.spec.title,
        "is_served": is_served,
        "is_scaled": guess.is_scaled,
        "rms": round(guess.rms, 4),
    }


_GUESS: Schema = {
    "type": "object",
    "required": ["model", "title", "is_served", "is_scaled", "rms"],
    "properties": {
        "model": {"type": "string"},
        "title": {"type": "string"},
        "is_served": {"type": "boolean", "description": "Whether this server has the model."},
        "is_scaled": {"type": "boolean", "description": "As its pipelines have them, and not in VAE space."},
        "rms": {"type": "number", "description": "Their root mean square once scaled: near 1 where it is right."},
    },
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["guesses"],
    "properties": {"guesses": {"type": "array", "items": _GUESS}},
}


def guess_paths(bodies: Schema) -> Schema:
    """Return the path for OpenAPI.

    Args:
        bodies: The forms of a tensor.
    """
    return {
        "/v1/guess": {
            "post": {
                "summary": "Which model's latents are these, and are they scaled?",
                "operationId": "guess",
                "parameters": [
                    {
                        "name": name,
                        "in": "query",
                        "description": PARAMETERS[name][0],
                        "schema": PARAMETERS[name][1],
                        "explode": True,
                    }
                    for name in GUESS_PARAMETERS
                ],
                "requestBody": {"required": True, "content": bodies},
                "responses": {
                    "200": {
                        "description": "What they may be, the likeliest first; those of this server before others",
                        "content": {"application/json": {"schema": _ANSWER}},
                    },
                    **failures("400", "401", "405", "408", "413", "415", "429", "431", "500", "503"),
                },
            }
        }
    }
