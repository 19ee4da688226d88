"""The extension of SD.Next, against a real server; with SDNEXT_DIR also under SD.Next's own remote VAE and T5."""

from __future__ import annotations

import http.server
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from films import small_hunyuan
from PIL import Image
from sdnext_host import DEAD, KINDS, remote_t5, sdnext_has, started
from text_servers import case_of, saved, serving

from hybridge.engine import Engine, EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.models import CATALOGUE, TextSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, hash_key
from hybridge.server.process.server import running


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variables and the ~/.netrc of this machine."""
    for name in ("SD_HYBRIDGE_SERVER", "SD_REMOTE_T5"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def decoded(engines: Any, model: str, z: torch.Tensor) -> torch.Tensor:
    return engines[model].module.decode(z).sample


@pytest.mark.parametrize("is_old", [False, True])
def test_every_address_becomes_the_server_s(server: str, is_old: bool) -> None:
    with started(config={"hybridge_server": f" {server}/ "}, is_old=is_old) as sdnext:
        decode, encode = sdnext.remote.hf_decode_endpoints, sdnext.remote.hf_encode_endpoints
        assert {"sd3", "sana", "wanai", *KINDS} <= set(decode)
        assert all(address.startswith(f"{server}/") for address in (*decode.values(), *encode.values()))
        assert all(address.endswith("?do_scaling=True") for address in (*decode.values(), *encode.values()))
        assert decode["pixartalpha"].startswith(f"{server}/v1/sd-v1/decode?")
        assert encode["h1"].startswith(f"{server}/v1/flux/encode?")
        assert decode["sd3"].startswith(f"{server}/?")  # which this server does not have
    assert sdnext.remote.hf_decode_endpoints["sd"].endswith(".huggingface.cloud")
    assert "sd3" not in sdnext.remote.hf_decode_endpoints


def test_pictures_are_the_server_s(server: str, engines: Any) -> None:
    z = latents(2, 4, 8, 12)
    with started(config={"hybridge_server": server}, vae={"scaling_factor": 0.18215}) as sdnext:
        raw = sdnext.remote.remote_decode(z, model_type="sd")
        expected = decoded(engines, "sd-v1", z / 0.18215)
        assert torch.allclose(raw, expected, atol=1e-5)
        sdnext.opts.set("remote_vae_type", "png")
        first, second = sdnext.remote.remote_decode(z, model_type="pixartalpha")
    both = VaeImageProcessor().postprocess(raw, output_type="pil")
    assert [first.tobytes(), second.tobytes()] == [picture.tobytes() for picture in both]


#: What SD.Next's pipelines hand over for each type of model, and the server's model for it.
SENT = {
    **dict.fromkeys(("sd", "pixartalpha"), ((2, 4, 4, 6), "sd-v1")),
    **dict.fromkeys(("sdxl", "pixartsigma", "hunyuandit", "auraflow", "omnigen"), ((2, 4, 4, 6), "sdxl")),
    **dict.fromkeys(("f1", "chroma"), ((2, 6, 64), "flux")),
    **dict.fromkeys(("h1", "zimage", "lumina2"), ((2, 16, 4, 6), "flux")),
}


#: Factors of the models' VAEs.
FACTORS = {"sd-v1": (0.18215, 0.0), "sdxl": (0.13025, 0.0), "flux": (0.3611, 0.1159)}


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("has_factors", [False, True])
def test_each_type_of_model_both_ways(
    server: str,
    engines: Any,
    photograph: Path,
    is_old: bool,
    has_factors: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where SD.Next knows no factors of a VAE, the server scales."""
    picture = Image.open(photograph).convert("RGB").resize((48, 32))
    with started(config={"hybridge_server": server}, is_old=is_old) as sdnext:
        assert {*SENT, "hunyuanvideo"} >= set(KINDS)
        for kind in ("sd", "sdxl", "f1", "h1") if is_old else SENT:
            shape, model = SENT[kind]
            scale, shift = FACTORS[model]
            sdnext.vae.config = {"scaling_factor": scale, "shift_factor": shift or None} if has_factors else {}
            z = latents(*shape)
            found = sdnext.remote.remote_decode(z, width=48, height=32, model_type=kind)
            grid = z if z.ndim == 4 else z.view(2, 2, 3, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 16, 4, 6)
            assert torch.allclose(found, decoded(engines, model, grid / scale + shift), atol=1e-5), kind
            found = sdnext.remote.remote_encode([picture], model_type=kind if kind != "h1" or not is_old else "f1")
            with torch.inference_mode():
                mode = engines[model].module.encode(VaeImageProcessor().preprocess(picture)).latent_dist.mode()
            assert torch.allclose(found, (mode - shift) * scale, atol=1e-5), kind
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_film(is_batch: bool, tmp_path: Path) -> None:
    module = small_hunyuan(latent_channels=16)
    module.save_pretrained(tmp_path)
    spec = replace(CATALOGUE["hunyuan-video"], source=str(tmp_path), subfolder=None)
    engine = Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))
    z = latents(*([1] * is_batch), 16, 3, 4, 6)
    with (
        running(create_app(LocalBackend({"hunyuan-video": engine}))) as address,
        started(config={"hybridge_server": address}, vae={"scaling_factor": 0.476986}) as sdnext,
    ):
        assert "/v1/hunyuan-video/decode" in sdnext.remote.hf_decode_endpoints["hunyuanvideo"]
        found = sdnext.remote.remote_decode(z, model_type="hunyuanvideo")
    with torch.inference_mode():
        expected = engine.module.decode(z.reshape(1, 16, 3, 4, 6) / 0.476986).sample
    assert torch.allclose(found, expected, atol=1e-4)


def test_packed_latents_of_flux(server: str, engines: Any) -> None:
    packed = latents(1, 24, 64)  # of 64 × 96 pixels
    vae = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    with started(config={"hybridge_server": server}, vae=vae) as sdnext:
        found = sdnext.remote.remote_decode(packed, width=96, height=64, model_type="f1")
    grid = packed.view(1, 4, 6, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 8, 12)
    assert torch.allclose(found, decoded(engines, "flux", grid / 0.3611 + 0.1159), atol=1e-5)


def test_without_factors_of_its_own_the_server_scales(server: str, engines: Any) -> None:
    z = latents(1, 4, 8, 8)
    with started(config={"hybridge_server": server}) as sdnext:
        found = sdnext.remote.remote_decode(z, model_type="sdxl")
    assert torch.allclose(found, decoded(engines, "sdxl", z / 0.13025), atol=1e-5)


def test_encoding(server: str, engines: Any, photograph: Path) -> None:
    picture = Image.open(photograph).convert("RGB").resize((96, 64))
    with started(config={"hybridge_server": server}, vae={"scaling_factor": 0.18215}) as sdnext:
        found = sdnext.remote.remote_encode([picture], model_type="sd")
    with torch.inference_mode():
        pixels = VaeImageProcessor().preprocess(picture)
        expected = engines["sd-v1"].module.encode(pixels).latent_dist.mode() * 0.18215
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_setting_changes_and_goes_away(server: str) -> None:
    with started(config={}) as sdnext:
        assert "hybridge" not in sdnext.remote.hf_decode_endpoints["sd"]
        before = dict(sdnext.remote.hf_decode_endpoints)
        sdnext.opts.set("hybridge_server", server)
        assert sdnext.remote.hf_decode_endpoints["sd"].startswith(server)
        sdnext.opts.set("hybridge_server", "")
        assert sdnext.remote.hf_decode_endpoints == before


def test_the_variable_has_priority(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_HYBRIDGE_SERVER", server)
    with started(config={"hybridge_server": DEAD}) as sdnext:
        assert sdnext.remote.hf_decode_endpoints["sd"].startswith(server)


def test_a_key_comes_from_netrc(specs: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    engine = Engine.load(specs["sd-v1"], EngineOptions(device="cpu"))
    app = create_app(LocalBackend({"sd-v1": engine}), keys=KeyRing({"sdnext": hash_key("a-secret")}))
    with running(app) as address:
        with started(config={"hybridge_server": address}):
            assert "wants a key; put `machine 127.0.0.1 login hybridge password KEY` into ~/.netrc" in caplog.text
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login hybridge password a-secret\n")
        (tmp_path / "netrc").chmod(0o600)
        with started(config={"hybridge_server": address}, vae={"scaling_factor": 0.18215}) as sdnext:
            assert "/v1/sd-v1/decode" in sdnext.remote.hf_decode_endpoints["sd"]
            assert sdnext.remote.remote_decode(latents(1, 4, 4, 4), model_type="sd").shape == (1, 3, 32, 32)
    assert "a-secret" not in caplog.text


@pytest.mark.parametrize("address", ["http://me:a-secret@box", "http://box/?key=a-secret", "http://box/k/a-secret"])
def test_a_key_in_the_address_is_refused(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with started(config={"hybridge_server": address}) as sdnext:
        assert not any("box" in one for one in sdnext.remote.hf_decode_endpoints.values())
    assert "no key in it; put `machine box login" in caplog.text
    assert "a-secret" not in caplog.text


class _Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        pass


def test_one_sentence_where_there_is_no_server(caplog: pytest.LogCaptureFixture) -> None:
    with started(config={"hybridge_server": "http://127.0.0.1:9"}) as sdnext:
        # It may come later; the server infers the model then.
        assert sdnext.remote.hf_decode_endpoints["sd"] == "http://127.0.0.1:9/?do_scaling=True"
        sdnext.opts.set("hybridge_server", "gpu-box:8000")
        with http.server.HTTPServer(("127.0.0.1", 0), _Other) as other:
            thread = threading.Thread(target=other.handle_request)
            thread.start()
            sdnext.opts.set("hybridge_server", f"http://127.0.0.1:{other.server_port}")
            thread.join()
    shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    said = [one for one in shown if one.startswith("hybridge: ")]
    assert said == [
        "hybridge: no answer from http://127.0.0.1:9 (ConnectionError); does `hybridge serve` run?",
        "hybridge: this is no address of a server; expected http://host:8000",
        f"hybridge: http://127.0.0.1:{other.server_port} is not a hybridge server; it answers 200",
    ]


def test_the_t5_of_flux(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saved(case_of("FluxPipeline"), tmp_path_factory.mktemp("flux"))
    with serving([TextSpec("flux", made.source, made.class_name)]) as address:
        with started(config={"hybridge_server": address}):
            assert "SD_REMOTE_T5" not in os.environ  # only if asked for
        monkeypatch.setenv("SD_REMOTE_T5", "http://other/te")
        with started(config={"hybridge_server": address, "hybridge_t5": True}) as sdnext:
            found = remote_t5(sdnext.devices, ["a cat in rain", "two trees"])
        assert os.environ["SD_REMOTE_T5"] == "http://other/te"
    expected = TextEngine.load(made.source, EngineOptions(device="cpu")).encode(
        {"prompt": ["a cat in rain", "two trees"]}
    )
    assert torch.equal(found, expected.tensors["prompt_embeds"])


@pytest.mark.skipif("SDNEXT_DIR" not in os.environ, reason="SDNEXT_DIR: a folder with SD.Next's source")
def test_sdnext_s_own_code_is_there() -> None:
    assert sdnext_has("modules.vae.sd_vae_remote") or sdnext_has("modules.sd_vae_remote")


def test_a_server_without_t5_is_left_alone(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with started(config={"hybridge_server": server, "hybridge_t5": True}):
        assert "SD_REMOTE_T5" not in os.environ
    assert "this server has no T5 of Flux; `hybridge serve flux` has" in caplog.text
