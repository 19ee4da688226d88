"""A model is loaded while another decodes: the server lives on, and its pictures are those of a quiet one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from conftest import in_strips

from hybridge.engine import Engine, EngineOptions, device_profile
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running
from hybridge.server.scheduling.queue import QueueLimits

OPTIONS = EngineOptions(device="cpu", dtype="bfloat16")
HEADERS = {"Content-Type": "application/octet-stream"}

#: The first estimates of how long a job takes, on a busy machine, must not have jobs refused.
PATIENT = QueueLimits(work_s=1e6)
BODY = torch.linspace(-2, 2, 4 * 24 * 24, dtype=torch.float32, device="cpu").numpy().tobytes()


def decode(address: str, model: str) -> httpx.Response:
    query = {"shape": "[1, 4, 24, 24]", "dtype": "float32", "output_type": "pt"}
    return httpx.post(f"{address}/v1/{model}/decode", params=query, content=BODY, headers=HEADERS, timeout=120)


def test_the_first_request_for_a_second_model_comes_among_decodes(specs, monkeypatch) -> None:
    # Where a processor multiplies bfloat16 itself, strips are not widened, and no loop measures them.
    monkeypatch.setattr(device_profile, "_has_matrix_instructions", lambda dtype: False)
    sd, sdxl = (in_strips(Engine.load(specs[name], OPTIONS)) for name in ("sd-v1", "sdxl"))
    with running(create_app(LocalBackend({"sd-v1": sd, "sdxl": sdxl}))) as address:
        quiet = {name: decode(address, name).content for name in ("sd-v1", "sdxl")}
    for _ in range(2):
        begun = threading.Event()

        def load(spec, *how, begun=begun, load=Engine.load):
            begun.set()
            return in_strips(load(spec, *how))

        with monkeypatch.context() as watched:
            watched.setattr(Engine, "load", load)
            backend = LocalBackend({"sd-v1": sd}, cold=[specs["sdxl"]], options=OPTIONS, limits=PATIENT)
            with running(create_app(backend)) as address, ThreadPoolExecutor(8) as pool:
                decodes = [pool.submit(decode, address, "sd-v1") for _ in range(8)]
                second = pool.submit(decode, address, "sdxl")
                decodes += [pool.submit(decode, address, "sd-v1") for _ in range(8)]
                answers = [future.result() for future in decodes]
                assert {answer.status_code for answer in answers} == {200}
                assert {answer.content for answer in answers} == {quiet["sd-v1"]}
                assert second.result().content == quiet["sdxl"]
                assert begun.is_set()
                assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_others_in_this_process_load_models_as_diffusers_does(specs, dtype) -> None:
    """Which sets torch's default dtype for the process, again and again, while the engine decodes."""
    from diffusers import AutoencoderKL

    engine = in_strips(Engine.load(specs["sd-v1"], EngineOptions(device="cpu", dtype="float32")))
    latents = torch.linspace(-2, 2, 4 * 24 * 24, dtype=torch.float32, device="cpu").view(1, 4, 24, 24)
    quiet = engine.decode(latents)
    done, loads = threading.Event(), 0

    def load() -> None:
        nonlocal loads
        while not done.is_set():
            AutoencoderKL.from_pretrained(specs["sdxl"].source, torch_dtype=dtype)
            loads += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        found = [engine.decode(latents)]
        while loads < 5 and thread.is_alive():
            found.append(engine.decode(latents))
    finally:
        done.set()
        thread.join()
    assert loads >= 5
    assert all(torch.equal(one, quiet) for one in found)
