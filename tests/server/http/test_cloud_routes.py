"""The conventions of SageMaker, Vertex AI and Hugging Face's endpoints, as their callers use them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode

import httpx
import pytest
import torch
from PIL import Image

from hybridge.server.app import create_app
from hybridge.server.cloud import cloud_named
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.process.startup_checks import is_loopback
from hybridge.server.settings import Settings

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
PREDICT = "/v1/endpoints/123/deployedModels/456:predict"


@pytest.fixture(scope="module")
def sagemaker(engines: Any) -> Iterator[str]:
    with running(create_app(LocalBackend(engines), Settings(cloud="sagemaker"))) as address:
        yield address


@pytest.fixture(scope="module")
def vertex(engines: Any) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/123/deployedModels/456")
        patch.setenv("AIP_PREDICT_ROUTE", PREDICT)
        patch.setenv("AIP_STORAGE_URI", "gs://a-bucket/a-model")
        app = create_app(LocalBackend(engines), Settings(cloud="vertex", max_body_mib=1))
    with running(app) as address:
        yield address


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def in_base64(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def about(z: torch.Tensor, **more: Any) -> dict[str, Any]:
    return {"shape": list(z.shape), "dtype": "float32", **more}


@torch.inference_mode()
def decoded(engines: Any, model: str, z: torch.Tensor) -> torch.Tensor:
    return engines[model].module.decode(z).sample


class TestSageMaker:
    def test_ping(self, sagemaker: str) -> None:
        assert httpx.get(f"{sagemaker}/ping").status_code == 200

    def test_parameters_in_its_header_and_the_shape_in_the_answer_s(self, sagemaker: str, engines: Any) -> None:
        """Only the body, its type, Accept and this header get through, in both directions."""
        z = latents(1, 4, 8, 8)
        attributes = urlencode(about(z, model="sdxl", task="decode", output_type="pt"), doseq=True)
        headers = {"content-type": "tensor/binary", "accept": "tensor/binary", ATTRIBUTES: attributes}
        response = httpx.post(f"{sagemaker}/invocations", content=z.numpy().tobytes(), headers=headers)
        returned = parse_qs(response.headers[ATTRIBUTES])
        assert returned["hybridge-model"] == ["sdxl"]
        flat = torch.frombuffer(bytearray(response.content), dtype=getattr(torch, returned["dtype"][0]))
        assert torch.equal(flat.reshape(json.loads(returned["shape"][0])), decoded(engines, "sdxl", z))

    def test_parameters_in_the_body(self, sagemaker: str) -> None:
        z = latents(1, 4, 8, 8)
        document = {"inputs": in_base64(z), "parameters": about(z, scaling_factor=0.18215)}
        response = httpx.post(f"{sagemaker}/invocations", json=document, headers={"accept": "image/png"})
        assert Image.open(io.BytesIO(response.content)).size == (64, 64)
        assert response.headers["hybridge-model"] == "sd-v1"
        assert ATTRIBUTES not in response.headers  # unasked

    def test_a_preview_comes_first_as_on_every_path(self, sagemaker: str) -> None:
        z = latents(1, 4, 8, 8)
        document = {"inputs": in_base64(z), "parameters": about(z, preview=True)}
        response = httpx.post(f"{sagemaker}/invocations?model=sdxl", json=document)
        assert response.headers["content-type"].startswith("multipart/")

    def test_a_picture(self, sagemaker: str, photograph: Any) -> None:
        headers = {"content-type": "image/jpeg", ATTRIBUTES: "model=taesd"}
        response = httpx.post(f"{sagemaker}/invocations", content=photograph.read_bytes(), headers=headers)
        assert json.loads(response.headers["shape"])[1] == 4

    @pytest.mark.parametrize(
        ("attributes", "said"),
        [
            ("task=paint", "no such task: saw 'paint', expected decode, encode, prompt"),
            ("model=sdxl2", "no such model on this server"),
            ("shpae=1", "unknown parameter: saw 'shpae'"),
            ("x=" + "y" * 1100, "is too long: saw 1102"),
            ("&".join(["shape=1"] * 70), "the query string cannot be read"),
        ],
    )
    def test_wrong_attributes(self, sagemaker: str, attributes: str, said: str) -> None:
        headers = {"content-type": "tensor/binary", ATTRIBUTES: attributes}
        response = httpx.post(f"{sagemaker}/invocations", content=bytes(256), headers=headers)
        assert response.status_code in (400, 404)
        assert said in response.json()["error"]


class TestVertex:
    def test_health(self, vertex: str) -> None:
        assert httpx.get(f"{vertex}/v1/endpoints/123/deployedModels/456").status_code == 200
        assert httpx.get(f"{vertex}/ping").status_code == 404

    def test_instances(self, vertex: str, engines: Any, photograph: Any) -> None:
        z, other = latents(1, 4, 8, 8), latents(1, 4, 4, 6)
        tensor = {"inputs": in_base64(z), "model": "sdxl", "parameters": {**about(z), "do_scaling": False}}
        picture = {"inputs": in_base64(other), "parameters": {**about(other), "output_type": "pil"}}
        file = io.BytesIO()
        Image.open(photograph).resize((64, 48)).save(file, "PNG")
        photo = {"inputs": base64.b64encode(file.getvalue()).decode(), "task": "encode", "model": "sd-v1"}
        document = {"instances": [tensor, picture], "parameters": {"output_type": "pt", "scaling_factor": 0.18215}}
        response = httpx.post(f"{vertex}{PREDICT}", json=document)
        assert response.status_code == 200, response.text
        first, second = response.json()["predictions"]
        assert (first["content_type"], first["model"]) == ("tensor/binary", "sdxl")
        flat = torch.frombuffer(bytearray(base64.b64decode(first["b64"])), dtype=getattr(torch, first["dtype"]))
        assert torch.equal(flat.reshape(first["shape"]), decoded(engines, "sdxl", z))
        assert (second["content_type"], second["model"]) == ("image/jpeg", "sd-v1")
        assert Image.open(io.BytesIO(base64.b64decode(second["b64"]))).size == (48, 32)
        (third,) = httpx.post(f"{vertex}{PREDICT}", json={"instances": [photo]}).json()["predictions"]
        assert third["shape"][:2] == [1, 4]

    def test_raw(self, vertex: str) -> None:
        """Its rawPredict passes any body on."""
        z = latents(1, 4, 8, 8)
        query = about(z, scaling_factor=0.13025, task="decode", model="sdxl")
        headers = {"content-type": "tensor/binary", "accept": "image/png"}
        response = httpx.post(f"{vertex}{PREDICT}", params=query, content=z.numpy().tobytes(), headers=headers)
        assert response.headers["content-type"] == "image/png"

    @pytest.mark.parametrize(
        ("document", "said"),
        [
            ({"instances": []}, "`instances` has another form"),
            ({"instances": {"inputs": "AA=="}}, "`instances` has another form: saw dict"),
            ({"instances": ["AA=="]}, "an instance is no object: saw str"),
            ({"instances": [{"inputs": 7}]}, "an instance has another form"),
            ({"instances": [{"inputs": "AA==", "shape": [1]}]}, "an instance has an unknown field: saw 'shape'"),
            ({"instances": [{"inputs": "AA==", "task": "paint"}]}, "an instance has a wrong model or task"),
            ({"instances": [{"inputs": "AA=="}], "paramters": {}}, "unknown field beside `instances`"),
            ({"instances": [{"inputs": "AA=="}] * 33}, "too many instances: saw 33, expected at most 32"),
            ({"instances": [{"inputs": "!"}]}, "`inputs` is not base64"),
            ({"instances": [{"inputs": "\0000"}]}, "`inputs` is not base64"),
            ({"instances": [{"prompt": "a cat"}]}, "has no text encoders on this server"),
            ({"inputs": "AA==", "a": "instances"}, "a tensor needs its shape and its dtype"),
        ],
    )
    def test_wrong_instances(self, vertex: str, document: dict[str, Any], said: str) -> None:
        response = httpx.post(f"{vertex}{PREDICT}", json=document)
        assert response.status_code in (400, 413, 415)
        assert said in response.json()["error"]

    def test_the_answer_to_all_is_limited(self, vertex: str) -> None:
        z = latents(1, 4, 8, 8)
        one = {"inputs": in_base64(z), "model": "sdxl", "parameters": about(z, output_type="pt")}
        answer = httpx.post(f"{vertex}{PREDICT}", json={"instances": [one] * 30})
        assert answer.status_code == 413
        assert "the answer to all instances would be too large" in answer.json()["error"]

    def test_one_wrong_instance_fails_all(self, vertex: str) -> None:
        z = latents(1, 4, 8, 8)
        good = {"inputs": in_base64(z), "model": "sdxl", "parameters": about(z)}
        bad = {"inputs": in_base64(z * torch.nan), "model": "sdxl", "parameters": about(z)}
        response = httpx.post(f"{vertex}{PREDICT}", json={"instances": [good, bad]})
        assert response.status_code == 400
        assert "saw nan at element 0" in response.json()["error"]


def test_prompts_as_instances(tmp_path: Any) -> None:
    from safetensors.torch import load
    from text_servers import case_of, saved, serving

    spec = saved(case_of("FluxPipeline"), tmp_path)
    with serving([spec], settings=Settings(cloud="huggingface")) as address:
        response = httpx.post(
            f"{address}/", json={"instances": [{"prompt": "a cat"}, {"prompt": ["two", "trees"]}]}
        )
        first, second = (load(base64.b64decode(one["b64"])) for one in response.json()["predictions"])
        assert httpx.get(f"{address}/health").status_code == 200
    assert first["prompt_embeds"].shape[0] == 1
    assert second["prompt_embeds"].shape[0] == 2


class TestSettings:
    def test_huggingface(self) -> None:
        settings = Settings(cloud="huggingface")
        assert (settings.models, settings.preload) == (("model=/repository",), True)
        assert not is_loopback(settings.address)

    def test_sagemaker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings(cloud="sagemaker").port == 8080
        monkeypatch.setenv("HYBRIDGE_CLOUD", "sagemaker")
        monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "8181")
        settings = Settings(models=("sdxl",))
        assert (settings.port, settings.models, settings.deadline_s) == (8181, ("sdxl",), 60)

    def test_vertex(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="AIP_STORAGE_URI, HYBRIDGE_MODELS or an argument"):
            Settings(cloud="vertex")
        monkeypatch.setenv("AIP_STORAGE_URI", "gs://bucket/model/")
        monkeypatch.setenv("AIP_HTTP_PORT", "9090")
        settings = Settings(cloud="vertex")
        assert (settings.port, settings.models) == (9090, ("model=gs://bucket/model",))
        monkeypatch.setenv("AIP_HTTP_PORT", "tcp")
        with pytest.raises(ValueError, match="port"):
            Settings(cloud="vertex")

    @pytest.mark.parametrize("route", ["predict", "/{x}", "http://x/"])
    def test_a_route_that_is_no_path(self, route: str) -> None:
        with pytest.raises(ValueError, match="AIP_PREDICT_ROUTE"):
            cloud_named("vertex", {"AIP_PREDICT_ROUTE": route})

    def test_keys_only_where_they_get_through(self, tmp_path: Any) -> None:
        assert Settings(cloud="huggingface", keys=tmp_path).keys == tmp_path
        with pytest.raises(ValueError, match="passes no keys on"):
            Settings(cloud="sagemaker", keys=tmp_path)
