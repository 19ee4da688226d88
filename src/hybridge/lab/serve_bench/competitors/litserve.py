"""diffusers' decode behind LitServe, as its documentation would have it: one worker process for each model.

LitServe and FastAPI read the annotations of the methods at run time, so they are not kept as text here.
"""

import importlib
from typing import Annotated, Any

from starlette.responses import Response

_litserve: Any = importlib.import_module("litserve")
_fastapi: Any = importlib.import_module("fastapi")

#: FastAPI's way to say: the body as it is.
_Bytes = Annotated[bytes, _fastapi.Body(media_type="application/octet-stream")]


class _Decode(_litserve.LitAPI):  # type: ignore[misc] # untyped, and not always installed
    """One model; LitServe carries it to its worker process before the module is loaded there."""

    def __init__(self, name: str, model: str, picture_format: str) -> None:
        super().__init__(api_path=f"/{name}")
        self._model, self._format = model, picture_format

    def setup(self, device: Any) -> None:
        from ..served_model import Module

        self._module = Module(self._model, self._format)

    def decode_request(self, request: _Bytes) -> Any:
        return request

    def predict(self, body: bytes) -> Any:
        return self._module.decode(body)

    def encode_response(self, decoded: Any) -> Response:
        data, headers = self._module.write(decoded)
        return Response(data, media_type=f"image/{self._format}", headers=headers)


def run(job: dict[str, Any]) -> None:
    """Serves until it is ended, without LitServe's own time limit."""
    apis = [_Decode(name, model, job["format"]) for name, model in job["models"]]
    server = _litserve.LitServer(apis, timeout=False)
    server.run(host="127.0.0.1", port=job["port"], generate_client_file=False, log_level="warning")
