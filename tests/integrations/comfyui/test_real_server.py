"""Prompts over the HTTP API of a real ComfyUI, whose folder ``COMFYUI_DIR`` names: ControlNets and workflows."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_models import fill_folders, served
from comfyui_process import PACK, ComfyUI, running_comfyui
from PIL import Image
from safetensors.torch import load_file

from hybridge.engine import Engine, EngineOptions
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, hash_key
from hybridge.server.process.server import running

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")

KEY = "hk-secret-of-the-test"
PIXELS = (96, 64)


class HeldEngine:
    """An engine that encodes until it is stopped."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.spec = engine, replace(engine.spec, name="held")
        self.begun, self.stopped = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def encode(self, *given: Any, should_stop: Callable[[], bool], **named: Any) -> Any:
        self.begun.set()
        until = time.monotonic() + 30
        while time.monotonic() < until and not should_stop():
            time.sleep(0.002)
        self.stopped.set()
        return self._engine.encode(*given, should_stop=should_stop, **named)


@pytest.fixture(scope="module")
def held() -> list[HeldEngine]:
    return []


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory, held: list[HeldEngine]) -> Iterator[ComfyUI]:
    base = tmp_path_factory.mktemp("comfyui")
    vaes, texts = served(tmp_path_factory.mktemp("served"))
    options = EngineOptions(device="cpu")
    engines: dict[str, Any] = {spec.name: Engine.load(spec, options) for spec in vaes}
    held.append(HeldEngine(engines["sd3"]))
    backend = LocalBackend({**engines, "held": held[0]}, texts=texts, options=options, prompt_cache_bytes=2**24)
    fill_folders(base)
    made_by = Path(__file__).with_name("real_denoisers.py")
    subprocess.run([sys.executable, made_by, base / "models"], check=True, capture_output=True)
    with running(create_app(backend, keys=KeyRing({"me": hash_key(KEY)}))) as address:
        env = {"HYBRIDGE_PROFILE_DESKTOP_URL": address, "HYBRIDGE_PROFILE_DESKTOP_KEY": KEY}
        env |= {"HYBRIDGE_PROFILES": str(base / "profiles.json")}
        with running_comfyui(base, env) as made:
            yield made
        texts_of_it = {path: path.read_bytes() for path in (base / "output").rglob("*") if path.is_file()}
        texts_of_it[base / "log.txt"] = (base / "log.txt").read_bytes()
        for secret in (KEY, address.partition("//")[2]):
            assert not [path for path, text in texts_of_it.items() if secret.encode() in text], secret


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


#: Where a VAE comes from: the server, or a file of the same weights.
REMOTE = node("HybridgeVAE", profile="desktop", model="sd3", precision="float")
LOCAL = node("VAELoader", vae_name="sd3.safetensors")

#: How a ControlNet is told of a picture; of the second, also where it shall be painted anew.
CONTROLS = {
    "sd3": node("ControlNetApplyAdvanced", strength=1.0, start_percent=0.0, end_percent=1.0),
    "sd3_inpaint": node(
        "ControlNetInpaintingAliMamaApply", mask=["5", 1], strength=1.0, start_percent=0.0, end_percent=1.0
    ),
}


def controlled(vae: dict[str, Any], control: str, prefix: str, pixels: tuple[int, int] = PIXELS) -> dict[str, Any]:
    """A picture that a ControlNet guides, which has the VAE encode its hint while the sampler runs."""
    width, height = pixels
    texts = {"positive": ["2", 0], "negative": ["3", 0]}
    given = {**texts, "control_net": ["4", 0], "image": ["5", 0], "vae": ["6", 0]}
    apply = CONTROLS[control]
    return {
        "1": node("UNETLoader", unet_name="sd3.safetensors", weight_dtype="default"),
        "2": node("HybridgeText", profile="desktop", model="sdxl", text="a (cat:1.3) in rain"),
        "3": node("HybridgeText", profile="desktop", model="sdxl", text=""),
        "4": node("ControlNetLoader", control_net_name=f"{control}.safetensors"),
        "5": node("LoadImage", image="example.png"),
        "6": vae,
        "7": {**apply, "inputs": {**apply["inputs"], **given}},
        "8": node("EmptySD3LatentImage", width=width, height=height, batch_size=1),
        "9": node("KSampler", model=["1", 0], seed=1, steps=4, cfg=4.0, sampler_name="euler", scheduler="simple",
                  positive=["7", 0], negative=["7", 1], latent_image=["8", 0], denoise=1.0),
        "10": node("VAEDecode", samples=["9", 0], vae=["6", 0]),
        "11": node("SaveImage", images=["10", 0], filename_prefix=prefix),
        "12": node("HybridgeSaveLatents", samples=["9", 0], filename_prefix=f"latents/{prefix}"),
    }  # fmt: skip


def results(comfyui: ComfyUI, prompt: dict[str, Any], prefix: str) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """The picture, and the latents that the sampler gave."""
    comfyui.run(prompt)
    output = comfyui.folder / "output"
    latents = load_file(output / "latents" / f"{prefix}_00001_.safetensors")["latents"]
    return np.asarray(Image.open(output / f"{prefix}_00001_.png")).astype(int), latents


@pytest.mark.parametrize("control", CONTROLS)
def test_a_controlnet_encodes_inside_the_sampler(comfyui: ComfyUI, control: str) -> None:
    here, here_latents = results(comfyui, controlled(LOCAL, control, f"{control}_here"), f"{control}_here")
    there, there_latents = results(comfyui, controlled(REMOTE, control, f"{control}_there"), f"{control}_there")
    prompt = controlled(REMOTE, control, f"{control}_free")
    prompt["7"]["inputs"]["strength"] = 0.0
    _, free = results(comfyui, prompt, f"{control}_free")
    apart, by_control = (there_latents - here_latents).abs().max(), (free - here_latents).abs().max()
    print(f"{control}: {apart:.2e} of {here_latents.abs().max():.2f}, by the ControlNet {by_control:.2e}")  # noqa: T201
    assert apart < 1e-3 * here_latents.abs().max()
    assert by_control > 100 * apart
    assert here.shape == (64, 96, 3)
    assert np.abs(there - here).max() <= 1


def test_an_interruption_inside_the_sampler_reaches_the_server(comfyui: ComfyUI, held: list[HeldEngine]) -> None:
    vae = node("HybridgeVAE", profile="desktop", model="held", precision="float")
    prompt_id = comfyui.begin(controlled(vae, "sd3", "held"))
    assert held[0].begun.wait(60)
    pressed = time.monotonic()
    comfyui.interrupt()
    assert held[0].stopped.wait(20)
    took_s = time.monotonic() - pressed
    entry = comfyui.end(prompt_id)
    print(f"{took_s:.3f} s from the interruption to the server")  # noqa: T201 - for whoever runs this by hand
    assert took_s < 0.2
    assert dict(entry["status"]["messages"])["execution_interrupted"]["node_id"] == "9"


def decoded(profile: str, model: str, samples: dict[str, Any]) -> dict[str, Any]:
    """A prompt of the plain node."""
    given = {"samples": ["1", 0], "profile": profile, "model": model, "precision": "8-bit"}
    return {"1": samples, "2": node("HybridgeDecode", **given), "3": node("PreviewImage", images=["2", 0])}


@contextmanager
def of_another_version() -> Iterator[str]:
    """A server that tells less of its models."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"models": [{"name": "old", "tasks": ["decode"], "class": "AutoencoderKL"}]}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_what_is_wrong_is_one_sentence(comfyui: ComfyUI) -> None:
    picture = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    film = node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1)
    profiles = comfyui.folder / "profiles.json"
    told = {
        "channels": comfyui.failure(decoded("desktop", "wan-2.1", picture)),
        "film": comfyui.failure(decoded("desktop", "sdxl", film)),
        "profile": comfyui.failure(decoded("desktp", "sdxl", picture)),
        "file": comfyui.failure(
            decoded("desktop", "sdxl", node("HybridgeLoadLatents", file="bad.safetensors", space="vae"))
        ),
    }
    with of_another_version() as address:
        servers = {"old": {"addresses": [address]}, "gone": {"addresses": ["http://127.0.0.1:9"]}}
        profiles.write_text(json.dumps(servers))
        profiles.chmod(0o600)
        told |= {name: comfyui.failure(decoded(name, "old", picture)) for name in servers}
    profiles.chmod(0o644)
    told["readable"] = comfyui.failure(decoded("old", "old", picture))
    profiles.write_text('{"old": ')
    profiles.chmod(0o600)
    told["broken"] = comfyui.failure(decoded("old", "old", picture))
    profiles.unlink()
    expected = {
        "channels": "[1, 4, 8, 8], but 'wan-2.1' decodes videos from latents with 16 channels",
        "film": "but 'sdxl' decodes pictures",
        "profile": "no profile has this name: expected desktop",
        "file": "bad.safetensors cannot be read as tensors",
        "old": "The server 'old' is of another version",
        "gone": "the server 'gone' cannot be reached",
        "readable": "0600",
        "broken": "is not JSON",
    }
    for name, words in expected.items():
        print(f"{name}: {told[name]}")  # noqa: T201 - for whoever runs this by hand
        assert words in told[name], (name, told[name])
        assert "\n" not in told[name]
        assert "127.0.0.1" not in told[name]
        assert name in ("readable", "broken") or str(comfyui.folder) not in told[name]
    pasted = decoded("http://me:secret@127.0.0.1:8000", "sdxl", picture)
    ((reasons,),) = [[error["details"] for error in found["errors"]] for found in comfyui.refused(pasted).values()]
    assert "takes the name of a profile" in reasons


WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))

#: Widgets of the workflows with other values, so that they take seconds.
SMALL = {"width": 64, "height": 48, "length": 9, "steps": 2}


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_an_example_workflow_runs(comfyui: ComfyUI, path: Path) -> None:
    assert path.stem in comfyui.get("/api/workflow_templates").json()["hybridge-remote"]
    picture = comfyui.get(f"/api/workflow_templates/hybridge-remote/{path.stem}.jpg")
    assert picture.headers["content-type"] == "image/jpeg"
    prompt = comfyui.as_prompt(json.loads(path.read_text(encoding="utf-8")))
    for part in prompt.values():
        part["inputs"] |= {name: value for name, value in SMALL.items() if name in part["inputs"]}
        if part["inputs"].get("model") == "":  # there are several here
            part["inputs"]["model"] = "sdxl"
    (shown,) = comfyui.run(prompt).values()
    found = Image.open(comfyui.folder / "output" / shown["images"][0]["filename"])
    frames = getattr(found, "n_frames", 1)
    print(path.stem, found.size, frames)  # noqa: T201 - for whoever runs this by hand
    assert (found.size, frames) == (((64, 48), 9) if "video" in path.stem else (found.size, 1))
    assert np.asarray(found.convert("RGB")).std() > 1


def test_a_comfyui_that_ends_leaves_nothing_behind(comfyui: ComfyUI, held: list[HeldEngine]) -> None:
    """The last test here: ComfyUI is killed while the server encodes for it."""
    held[0].begun.clear()
    held[0].stopped.clear()
    vae = node("HybridgeVAE", profile="desktop", model="held", precision="float")
    prompt = controlled(vae, "sd3", "killed")
    prompt["9"]["inputs"]["seed"] = 2
    comfyui.begin(prompt)
    assert held[0].begun.wait(60)
    comfyui.kill()
    killed = time.monotonic()
    assert held[0].stopped.wait(20)
    print(f"{time.monotonic() - killed:.3f} s from the end to the server")  # noqa: T201
    assert time.monotonic() - killed < 1
