"""The handler for Hugging Face's endpoints, behind what their toolkit does with it.

With ``HF_TOOLKIT_DIR``, the folder with the package ``huggingface_inference_toolkit``, behind their own server.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hybridge.server.process.server import running

FOLDER = Path(__file__).parents[2] / "integrations" / "huggingface"


def toolkit(repository: Path) -> Starlette:
    """What their server does, in short: read by Content-Type, call the handler, write by Accept, errors are 400."""
    spec = importlib.util.spec_from_file_location("handler", repository / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(str(repository))

    def typed(text: str) -> Any:
        return int(text) if text.isnumeric() else {"false": False, "true": True}.get(text, text)

    def in_json(value: Any) -> Any:
        if not isinstance(value, Image.Image):
            raise TypeError
        file = io.BytesIO()
        value.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    async def predict(request: Request) -> Response:
        try:
            body, kind = await request.body(), request.headers["content-type"]
            read = json.loads(body) if kind == "application/json" else {"inputs": Image.open(io.BytesIO(body))}
            if request.query_params and "parameters" not in read:
                read["parameters"] = {name: typed(text) for name, text in request.query_params.items()}
            made = await anyio.to_thread.run_sync(handler, read)
            accept = request.headers["accept"]
            if accept.startswith("image/"):
                file = io.BytesIO()
                made.save(file, accept.removeprefix("image/").upper())
                return Response(file.getvalue(), media_type=accept)
            return Response(json.dumps(made, default=in_json), media_type="application/json")
        except Exception as error:
            return JSONResponse({"error": str(error)}, 400)

    return Starlette(routes=[Route("/", predict, methods=["POST"])])


@pytest.fixture(scope="module")
def endpoint(specs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an endpoint whose repository is a VAE with our handler beside it."""
    repository = tmp_path_factory.mktemp("repository") / "model"
    shutil.copytree(specs["sd-v1"].source, repository)
    shutil.copy(FOLDER / "handler.py", repository)
    folder = os.environ.get("HF_TOOLKIT_DIR")
    if not folder:
        with running(toolkit(repository)) as address:
            yield address
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([folder, *sys.path])
    environment = {**os.environ, "HF_MODEL_DIR": str(repository), "PYTHONPATH": paths}
    command = ["-m", "uvicorn", "huggingface_inference_toolkit.webservice_starlette:app", f"--port={port}"]
    with subprocess.Popen([sys.executable, *command], env=environment) as server:
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            try:
                httpx.get(f"{address}/health")
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
        server.terminate()


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def sent(z: torch.Tensor, **parameters: Any) -> dict[str, Any]:
    about = {"shape": list(z.shape), "dtype": "float32", **parameters}
    return {"inputs": base64.b64encode(z.numpy().tobytes()).decode(), "parameters": about}


def tensor_of(answer: dict[str, Any]) -> torch.Tensor:
    about = answer["parameters"]
    flat = torch.frombuffer(bytearray(base64.b64decode(answer["inputs"])), dtype=getattr(torch, about["dtype"]))
    return flat.reshape(about["shape"])


def picture_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@torch.inference_mode()
def decoded(engines: Any, z: torch.Tensor) -> torch.Tensor:
    return engines["sd-v1"].module.decode(z).sample


def post(endpoint: str, document: Any, accept: str = "*/*") -> httpx.Response:
    return httpx.post(endpoint, json=document, headers={"accept": accept}, timeout=60)


def test_a_picture_from_latents(endpoint: str, engines: Any) -> None:
    """A missing do_scaling means that they are a pipeline's, as it always did in this form."""
    z = latents(1, 4, 8, 12)
    response = post(endpoint, sent(z), "image/png")
    (expected,) = VaeImageProcessor().postprocess(decoded(engines, z / 0.18215))
    found = np.asarray(Image.open(io.BytesIO(response.content)), dtype=int)
    assert np.abs(found - np.asarray(expected, dtype=int)).max() <= 1
    assert picture_of(post(endpoint, sent(z)).json()).size == (96, 64)


def test_several_pictures(endpoint: str) -> None:
    answer = post(endpoint, sent(latents(2, 4, 4, 4), do_scaling=False)).json()
    assert [picture_of(one).size for one in answer] == [(32, 32), (32, 32)]


@pytest.mark.parametrize("kind", ["pt", "partial"])
def test_tensors_from_latents(endpoint: str, engines: Any, kind: str) -> None:
    z = latents(1, 4, 8, 8)
    asked = {"output_type": "pt"} if kind != "partial" else {"output_type": "pt", "partial_postprocess": True}
    found = tensor_of(post(endpoint, sent(z, do_scaling=False, **asked)).json())
    expected = decoded(engines, z)
    if kind == "partial":
        assert (found.dtype, found.shape) == (torch.uint8, (1, 64, 64, 3))
    else:
        assert torch.allclose(found, expected, atol=1e-4)


def test_latents_from_a_picture(endpoint: str, engines: Any, photograph: Path) -> None:
    """As a file; and in base64, as a file and as pixels."""
    picture = Image.open(photograph).convert("RGB").resize((96, 64))
    file = io.BytesIO()
    picture.save(file, "PNG")
    with torch.inference_mode():
        posterior = engines["sd-v1"].module.encode(VaeImageProcessor().preprocess(picture)).latent_dist
    headers = {"content-type": "image/png", "accept": "application/json"}
    query = {"scaling_factor": 0.18215}
    one = httpx.post(endpoint, params=query, content=file.getvalue(), headers=headers, timeout=60).json()
    assert torch.allclose(tensor_of(one), posterior.mode() * 0.18215, atol=1e-4)
    in_base64 = {"inputs": base64.b64encode(file.getvalue()).decode()}
    assert torch.allclose(tensor_of(post(endpoint, in_base64).json()), posterior.mode(), atol=1e-4)
    pixels = torch.from_numpy(np.array(picture))[None]
    as_pixels = {**sent(pixels), "parameters": {"shape": list(pixels.shape), "dtype": "uint8", "moments": True}}
    assert torch.allclose(tensor_of(post(endpoint, as_pixels).json()), posterior.parameters, atol=1e-4)


def test_instances(endpoint: str, engines: Any) -> None:
    z = latents(1, 4, 4, 4)
    shared = {"output_type": "pt", "do_scaling": False}
    answer = post(endpoint, {"instances": [sent(z), sent(2 * z)], "parameters": shared})
    if "predictions" not in answer.json():
        pytest.skip(f"not with this version of the toolkit: {answer.json()}")
    first, second = map(tensor_of, answer.json()["predictions"])
    assert torch.allclose(first, decoded(engines, z), atol=1e-4)
    assert torch.allclose(second, decoded(engines, 2 * z), atol=1e-4)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"inputs": "!"}, "`inputs` is not base64"),
        ({"inputs": [1, 2]}, "the JSON body has another form"),
        ({"inputs": base64.b64encode(b"text").decode()}, "a tensor needs its shape and its dtype"),
        (sent(latents(1, 16, 8, 8)), "these latents are not model's"),
        ({**sent(latents(1, 4, 2, 2)), "parameters": {"shape": [1, 4, 2, 3], "dtype": "float32"}}, "bytes"),
        (sent(latents(1, 4, 2, 2), output_type="mp4"), "no video files are written here"),
        (sent(latents(1, 4, 2, 2), scaling="x"), "unknown parameter"),
        ({**sent(latents(1, 4, 2, 2)), "parameters": [1]}, "`parameters` are no object"),
        ({"instances": [sent(latents(1, 4, 2, 2))], "parameters": "x"}, "`parameters` are no object"),
        (sent(torch.zeros(1, 4, 520, 260)), "too many pixels: saw 8652800"),
        (sent(latents(1, 4, 2, 2) * torch.inf), "the latents hold numbers"),
    ],
)
def test_wrong_requests_get_a_sentence(endpoint: str, document: dict[str, Any], said: str) -> None:
    response = post(endpoint, document)
    assert response.status_code == 400
    assert said in response.json()["error"]


def test_a_pipeline_s_vae(specs: Any, tmp_path: Path) -> None:
    """A repository may be a whole pipeline, of which the VAE is used."""
    shutil.copytree(specs["sd-v1"].source, tmp_path / "vae")
    shutil.copy(FOLDER / "handler.py", tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", ""]}'
    )
    with running(toolkit(tmp_path)) as address:
        assert picture_of(post(address, sent(latents(1, 4, 4, 4))).json()).size == (32, 32)


def test_what_the_endpoint_installs() -> None:
    assert (FOLDER / "requirements.txt").read_text().split() == ["hybridge[engine]"]
