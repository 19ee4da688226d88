"""A VAE on Hugging Face's Inference Endpoints without a container of your own.

Their toolkit makes one :class:`EndpointHandler` and calls it with each request.  It reads JSON and pictures and
writes the same; tensors as bytes, and all else of the protocol, need the container that docs/clouds.md describes.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from hybridge.engine import Engine, EngineOptions, frames_of, limit_threads, resolve, to_pixels
from hybridge.errors import RequestError, TooLarge
from hybridge.models import image_layout, latents_layout
from hybridge.models.latent_space import normalisation_of
from hybridge.protocol import DecodeRequest, EncodeRequest, PictureFile, Request, WireTensor, read_request
from hybridge.protocol.media import read_picture
from hybridge.protocol.query import format_query
from hybridge.protocol.torch import from_torch, to_torch

#: Most pixels of one request, all its pictures together.
MAX_PIXELS = 2048 * 2048


class EndpointHandler:
    """Decodes latents and encodes pictures with the VAE of a repository.

    Args:
        path: The repository on disk: a VAE, or a pipeline with one.
    """

    def __init__(self, path: str = "") -> None:
        limit_threads()
        part = ":vae" if Path(path, "model_index.json").is_file() else ""
        self._engine = Engine.load(resolve(f"model={path}{part}"), EngineOptions())
        self._device = Lock()  # one thread at a time

    def __call__(self, data: dict[str, Any]) -> Any:
        """Return the answer to a request.

        Args:
            data: ``inputs``, a picture, or base64 of a tensor or of a picture file; and ``parameters``, those of
                docs/protocol.md, where latents are scaled unless ``do_scaling`` is false.  Or ``instances`` of
                these, as Vertex AI sends them.

        Returns:
            For latents a PIL picture, or a list of several; with ``output_type=pt``, and for pictures, a dict of
            ``inputs``, base64 of the bytes, and ``parameters``, their shape and dtype.

        Raises:
            HybridgeError: when the request is wrong; the toolkit answers it with its text and the status 400.
        """
        if isinstance(data.get("instances"), list):
            shared = _parameters_of(data)
            return {"predictions": [self._answer(_one_of(instance, shared)) for instance in data["instances"]]}
        return self._answer(data)

    def _answer(self, data: dict[str, Any]) -> Any:
        request = _read(data.get("inputs"), _parameters_of(data))
        with self._device:
            return self._decoded(request) if isinstance(request, DecodeRequest) else self._encoded(request)

    def _decoded(self, request: DecodeRequest) -> Any:
        spec, scaling, sides = self._engine.spec, request.scaling, (request.height, request.width)
        layout = latents_layout(request.latents.shape, spec, *sides)
        _check_pixels(layout.pixels)
        if request.output == "video":
            raise RequestError("no video files are written here", hint="output_type=pt, or hybridge's container")
        sent = normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
        latents = to_torch(request.latents)
        signed = self._engine.decode(latents, sent=sent, height=request.height, width=request.width)
        if request.output == "signed":
            return _written(signed)
        pixels = to_pixels(frames_of(signed))
        if request.output == "pixels":
            return _written(pixels)
        pictures = [Image.fromarray(one.numpy()) for one in pixels.cpu()]
        return pictures[0] if len(pictures) == 1 else pictures

    def _encoded(self, request: EncodeRequest) -> dict[str, Any]:
        spec, scaling, image = self._engine.spec, request.scaling, request.image
        spec.check_encodes()
        if isinstance(image, PictureFile):
            image = read_picture(image.data, max_pixels=MAX_PIXELS, multiple=spec.spatial_factor)
        if not isinstance(image, WireTensor):
            raise RequestError("no video files are read here", hint="hybridge's container does")
        layout = image_layout(image.shape, spec, is_bytes=image.dtype == "uint8")
        _check_pixels(layout.batch * layout.frames * layout.height * layout.width)
        how = {"value_range": request.value_range}
        if request.moments:
            return _written(self._engine.moments(to_torch(image), **how))
        wanted = normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
        sampling = {"sample": request.sample, "seed": request.seed}
        return _written(self._engine.encode(to_torch(image), wanted=wanted, **sampling, **how))


def _one_of(instance: Any, shared: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(instance, dict):
        raise RequestError("an instance is no object", saw=type(instance).__name__, expected="one with `inputs`")
    return {**instance, "parameters": {**shared, **_parameters_of(instance)}}


def _parameters_of(data: dict[str, Any]) -> dict[str, Any]:
    parameters = data.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError("`parameters` are no object", saw=type(parameters).__name__, expected="names and values")
    return parameters


def _read(inputs: Any, parameters: dict[str, Any]) -> Request:
    if isinstance(inputs, Image.Image):
        file = io.BytesIO()
        inputs.convert("RGB").save(file, "PNG", compress_level=1)
        return read_request(format_query(parameters), {}, file.getvalue(), "encode")
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    return read_request("", {"content-type": "application/json"}, body)


def _check_pixels(pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise TooLarge("too many pixels", saw=pixels, expected=f"at most {MAX_PIXELS}, such as 2048×2048")


def _written(tensor: Any) -> dict[str, Any]:
    wire = from_torch(tensor)
    encoded = base64.b64encode(wire.data).decode("ascii")
    return {"inputs": encoded, "parameters": {"shape": list(wire.shape), "dtype": wire.dtype}}
