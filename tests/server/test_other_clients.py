"""Clients in the wild other than diffusers, request by request as docs/protocol.md describes them."""

from __future__ import annotations

import base64
import io
import json
import shutil

import httpx
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def tensor_of(response: httpx.Response) -> torch.Tensor:
    assert response.status_code == 200, response.text
    dtype = getattr(torch, response.headers["dtype"])
    return torch.frombuffer(bytearray(response.content), dtype=dtype).reshape(json.loads(response.headers["shape"]))


@torch.inference_mode()
def decoded(engines, model: str, z: torch.Tensor) -> torch.Tensor:
    return engines[model].module.decode(z).sample


class TestComfyUI:
    """kijai's ComfyUI-HFRemoteVae and Visionatrix's RemoteVAE: latents are in VAE space, tensors come back."""

    @staticmethod
    def query(z: torch.Tensor) -> dict[str, object]:
        return {
            "do_scaling": "False",
            "output_type": "pt",
            "partial_postprocess": "False",
            "shape": list(z.shape),
            "dtype": "float32",
            # Taken from the wrong axes by the nodes; must not matter for 4-D latents.
            "height": 24,
            "width": 512,
        }

    def test_binary(self, server, engines) -> None:
        z = latents(2, 4, 8, 12)
        headers = {"content-type": "tensor/binary", "accept": "tensor/binary"}
        response = httpx.post(f"{server}/v1/sdxl/decode", params=self.query(z), content=raw(z), headers=headers)
        assert response.headers["content-type"] == "tensor/binary"
        assert torch.equal(tensor_of(response), decoded(engines, "sdxl", z))

    def test_base64(self, server, engines) -> None:
        z = latents(1, 4, 8, 8)
        body = json.dumps({"inputs": base64.b64encode(raw(z)).decode()})
        headers = {"content-type": "tensor/base64", "accept": "tensor/base64"}
        response = httpx.post(f"{server}/v1/sdxl/decode", params=self.query(z), content=body, headers=headers)
        answer = response.json()
        data = bytearray(base64.b64decode(answer["inputs"]))
        tensor = torch.frombuffer(data, dtype=getattr(torch, answer["parameters"]["dtype"]))
        assert torch.equal(tensor.reshape(answer["parameters"]["shape"]), decoded(engines, "sdxl", z))


class TestSDNext:
    @pytest.mark.parametrize(("image_format", "accept"), [("png", "image/png"), ("jpg", "image/jpeg")])
    def test_pictures(self, server, engines, image_format, accept) -> None:
        z = latents(1, 4, 8, 8)
        query = {
            "input_tensor_type": "binary",
            "output_tensor_type": "binary",
            "shape": list(z.shape),
            "dtype": "float32",
            "scaling_factor": 0.18215,
            "image_format": image_format,
            "output_type": "pil",
            "height": 64,
            "width": 64,
        }
        headers = {"content-type": "tensor/binary", "accept": accept}
        response = httpx.post(f"{server}/v1/sd-v1/decode", params=query, content=raw(z), headers=headers)
        picture = Image.open(io.BytesIO(response.content))
        assert (response.headers["content-type"], picture.size) == (accept, (64, 64))
        if image_format == "png":
            (expected,) = VaeImageProcessor().postprocess(decoded(engines, "sd-v1", z / 0.18215), output_type="pil")
            assert picture.tobytes() == expected.tobytes()

    def test_one_item_of_flux_without_its_batch_axis(self, server, engines) -> None:
        z = latents(16, 8, 12)
        query = {
            "shape": list(z.shape),
            "dtype": "float32",
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "output_type": "pt",
            "height": 64,
            "width": 96,
        }
        headers = {"content-type": "tensor/binary", "accept": "tensor/binary"}
        response = httpx.post(f"{server}/v1/flux/decode", params=query, content=raw(z), headers=headers)
        assert torch.equal(tensor_of(response), decoded(engines, "flux", z[None] / 0.3611 + 0.1159))


class TestTheOldestForm:
    """Everything in one JSON body; a missing do_scaling means "scale"."""

    def post(self, server: str, z: torch.Tensor, **parameters: object) -> httpx.Response:
        about = {"shape": list(z.shape), "dtype": "float32", "width": 64, "height": 64, **parameters}
        body = {"inputs": base64.b64encode(raw(z)).decode(), "parameters": about}
        return httpx.post(f"{server}/v1/sd-v1/decode", json=body, headers={"accept": "image/jpeg"})

    def test_scales_unless_told_not_to(self, server) -> None:
        z = latents(1, 4, 8, 8)
        scaled, plain = self.post(server, z), self.post(server, z, do_scaling=False)
        explicit = self.post(server, z, do_scaling=True)
        assert scaled.headers["content-type"] == "image/jpeg"
        assert scaled.content == explicit.content
        assert scaled.content != plain.content


class TestCurl:
    """What somebody types: no Accept, and curl's own Content-Type."""

    FORM = "application/x-www-form-urlencoded"

    def test_encode_and_decode(self, server, engines) -> None:
        picture = Image.effect_mandelbrot((64, 48), (-2, -1.2, 0.8, 1.2), 30).convert("RGB")
        file = io.BytesIO()
        picture.save(file, "PNG")
        encoded = httpx.post(
            f"{server}/v1/sd-v1/encode", content=file.getvalue(), headers={"content-type": self.FORM}
        )
        z = tensor_of(encoded)
        shape = "&".join(f"shape={side}" for side in z.shape)
        response = httpx.post(
            f"{server}/v1/sd-v1/decode?{shape}&dtype=float32",
            content=encoded.content,
            headers={"content-type": self.FORM},
        )
        assert Image.open(io.BytesIO(response.content)).size == (64, 48)

    def test_lossless_webp(self, server, engines) -> None:
        z = latents(1, 4, 8, 8)
        query = {"shape": list(z.shape), "dtype": "float32", "image_format": "webp"}
        response = httpx.post(
            f"{server}/v1/sd-v1/decode", params=query, content=raw(z), headers={"content-type": "tensor/binary"}
        )
        (expected,) = VaeImageProcessor().postprocess(decoded(engines, "sd-v1", z), output_type="pil")
        assert Image.open(io.BytesIO(response.content)).convert("RGB").tobytes() == expected.tobytes()

    @pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
    def test_encode_of_a_rotated_photograph(self, server, engines, file_format) -> None:
        picture = Image.effect_mandelbrot((80, 64), (-2, -1.2, 0.8, 1.2), 30).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned by 90°
        file = io.BytesIO()
        picture.save(file, file_format, exif=exif)
        response = httpx.post(f"{server}/v1/sd-v1/encode", content=file.getvalue())
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))).convert("RGB")
        with torch.inference_mode():
            expected = engines["sd-v1"].module.encode(VaeImageProcessor().preprocess(upright)).latent_dist.mode()
        assert torch.equal(tensor_of(response), expected)
        assert expected.shape == (1, 4, 10, 8)


@pytest.mark.parametrize("path", ["/v1/sd-v1/decode", "/v1/sd-v1/decode/", "/predict", "/"])
def test_an_address_with_or_without_a_slash_at_its_end(server, path) -> None:
    z = latents(1, 4, 4, 4)
    query = {"shape": list(z.shape), "dtype": "float32", "scaling_factor": 0.18215}
    response = httpx.post(server + path, params=query, content=raw(z), headers={"content-type": "tensor/binary"})
    assert response.status_code == 200
    assert response.headers["hybridge-model"] == "sd-v1"


def test_several_accept_headers_and_a_wildcard(server) -> None:
    z = latents(1, 4, 4, 4)
    query = {"shape": list(z.shape), "dtype": "float32"}
    accepts = [[("accept", "text/html"), ("accept", "image/png")], [("accept", "tensor/*")]]
    types = [
        httpx.post(f"{server}/v1/sd-v1/decode", params=query, content=raw(z), headers=accept).headers[
            "content-type"
        ]
        for accept in accepts
    ]
    assert types == ["image/png", "tensor/binary"]


def test_a_tiny_autoencoder_answers_full_and_tiny_requests_alike(server, engines) -> None:
    """One request, whichever VAE is behind the URL: the picture must mean the same."""
    pipeline = latents(1, 4, 8, 8)
    vae_space = pipeline / 0.18215
    headers = {"content-type": "tensor/binary", "accept": "tensor/binary"}

    def ask(z: torch.Tensor, **query: object) -> torch.Tensor:
        query |= {"shape": list(z.shape), "dtype": "float32", "output_type": "pt"}
        return tensor_of(httpx.post(f"{server}/v1/taesd/decode", params=query, content=raw(z), headers=headers))

    expected = decoded(engines, "taesd", pipeline)
    assert torch.equal(ask(pipeline, scaling_factor=0.18215), expected)
    assert torch.equal(ask(pipeline, do_scaling="True"), expected)
    assert torch.allclose(ask(vae_space, do_scaling="False"), expected, atol=1e-5)


def test_a_tiny_autoencoder_of_unknown_parent_says_so(specs, tmp_path) -> None:
    """It cannot tell how VAE-space latents would have to be normalised; with a factor there is nothing to tell."""
    folder = shutil.copytree(specs["taesd"].source, tmp_path / "mine")
    engine = Engine.load(resolve(f"mine={folder}"), EngineOptions(device="cpu"))
    z = latents(1, 4, 8, 8)
    query: dict[str, object] = {"shape": list(z.shape), "dtype": "float32"}
    with running(create_app(LocalBackend({"mine": engine}))) as address:

        def warning(**more: object) -> str | None:
            response = httpx.post(
                f"{address}/v1/mine/decode",
                params={**query, **more},
                content=raw(z),
                headers={"content-type": "tensor/binary"},
            )
            assert response.status_code == 200
            return response.headers.get("hybridge-warning")

        assert "unknown parent" in (warning() or "")
        assert warning(scaling_factor=0.18215) is None
