"""``connect`` on pipelines of every VAE class: the call gives what it gives with the pipeline's own VAE.

The pipelines are those of ``benchmarks/diffusers_pipelines``, small and with random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import later
import pytest
import stable_diffusion
import torch
import transformers_2d
import trial
import videos
from text_pipelines import CASES
from vae_classes import pipelines
from vae_classes.rows import ROWS

import hybridge
from hybridge.client import Client
from hybridge.engine import Engine, EngineOptions, resolve
from hybridge.errors import Mismatch
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

#: Pipelines, and how equal the results are: the same bits, or within half a step of an 8-bit picture.
PIPELINES = {
    "AllegroPipeline": "bitwise",
    "AnimateDiffPipeline": "bitwise",
    "CogVideoXPipeline": "bitwise",
    "CogVideoXVideoToVideoPipeline": "bitwise",
    "Flux2KleinPipeline": "bitwise",
    "Flux2Pipeline": "bitwise",
    "HunyuanImagePipeline": "bitwise",
    "HunyuanVideoPipeline": "bitwise",
    "LattePipeline": "bitwise",
    "LTXPipeline": "bitwise",
    "MochiPipeline": "bitwise",
    "QwenImageImg2ImgPipeline": "bitwise",
    "QwenImagePipeline": "bitwise",
    "SanaPipeline": "bitwise",
    "SanaSprintPipeline": "bitwise",
    "StableDiffusionInpaintPipeline asymmetric": "bitwise",
    "StableVideoDiffusionPipeline": "rounding",
    "WanImageToVideoPipeline": "bitwise",
    "WanPipeline": "bitwise",
    "WanVACEPipeline": "bitwise",
    "WanVideoToVideoPipeline": "bitwise",
}

#: Pipelines that convert their range of pixels as the server does, so that it is converted back in between.
WITHIN_ROUNDING = ("Kandinsky6SRPipeline",)

#: More of them, and what is said with ``vae=None``.
MORE = {
    "CosmosTextToWorldPipeline": "bitwise",
    "CosmosVideoToWorldPipeline": "bitwise",
    "EasyAnimatePipeline": "bitwise",
    "HunyuanImageRefinerPipeline": "bitwise",
    "HunyuanVideo15Pipeline": "none",  # its constructor reads the VAE's config
    "Kandinsky6SRPipeline": "rounding",
    "LTX2ImageToVideoPipeline": "bitwise",
    "LTX2Pipeline": "bitwise",
    "LTXImageToVideoPipeline": "bitwise",
    "SanaVideoPipeline": "bitwise",  # its code asks for the class of its VAE
    "WanImageToVideoPipeline": "bitwise",  # of Wan 2.2, with a time for each latent
}


def case_of(name: str) -> Any:
    """The benchmark's case; making the cases imports pipelines, of which some warn."""
    cases = (case for module in (later, stable_diffusion, transformers_2d, videos) for case in module.cases())
    return next(case for case in cases if case.name == name)


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of pipelines that are on their way out
@pytest.mark.parametrize("name", PIPELINES)
def test_the_result_is_that_of_the_own_vae(name: str) -> None:
    record: dict[str, Any] = trial.run(case_of(name), ("connect", "vae=None"))
    assert "local" not in record, record["local"]
    found = {way: (record[way]["kind"], record[way]["said"]) for way in ("connect", "vae=None")}
    assert found["connect"][0] == PIPELINES[name], found
    # Where a pipeline with vae=None does not say which model it needs, `model=` is asked for.
    assert found["vae=None"][0] == PIPELINES[name], found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(pipelines.cases()), ids=lambda case: case.name)
def test_the_result_is_that_of_the_own_vae_for_more_pipelines(case: Any) -> None:
    record: dict[str, Any] = trial.run(case, ("connect", "vae=None"))
    assert "local" not in record, record["local"]
    connected = "rounding" if case.name in WITHIN_ROUNDING else "bitwise"
    assert (record["connect"]["kind"], record["vae=None"]["kind"]) == (connected, MORE[case.name]), record


@pytest.mark.parametrize("name", ["flux2", "ltx-2"])
def test_statistics_among_the_weights_are_known_before_these_are_loaded(name: str, tmp_path: Path) -> None:
    own = next(row for row in ROWS if row.name == name).make()
    own.save_pretrained(tmp_path)
    spec = resolve(f"own={tmp_path}")
    with running(create_app(LocalBackend({}, cold=[spec]))) as address, Client(address) as client:
        (document,) = client.models()
        assert document["state"] == "cold"
        remote = hybridge.RemoteVAE.of_server(client, "own")
    expected = {key: buffer for key, buffer in own.named_buffers() if key in document["statistics"]}
    found = dict(remote.named_buffers())
    assert len(expected) == 2
    assert all(torch.equal(found[key], buffer) for key, buffer in expected.items())


def test_statistics_of_weights_that_are_not_there_yet(tmp_path: Path) -> None:
    next(row for row in ROWS if row.name == "ltx-2").make().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    backend = LocalBackend({}, cold=[resolve(f"own={tmp_path}")])
    with (
        running(create_app(backend)) as address,
        pytest.raises(Mismatch, match=r"no latents_mean, no latents_std.*Try: `hybridge models --download NAME`"),
    ):
        hybridge.RemoteVAE.of_server(address, "own")


def test_a_pipeline_that_cannot_be_made_without_a_vae(tmp_path: Path) -> None:
    """HunyuanVideo 1.5's constructor reads the VAE's config: it is loaded with a remote one."""
    case = next(case for case in CASES if case.class_name == "HunyuanVideo15Pipeline")
    case.save(tmp_path)
    words = {"prompt": "a cat", **case.encode_options()}
    expected = case.picture(case.load(tmp_path), **words)
    spec = resolve(f"own={tmp_path / 'whole' / 'vae'}")
    engine = Engine.load(spec, EngineOptions(device="cpu", exactness="bitwise"))
    with running(create_app(LocalBackend({"own": engine}))) as address:
        with pytest.raises(Mismatch, match="has no VAE 'other': saw own"):
            hybridge.RemoteVAE.of_server(address, "other")
        pipe = case.load(tmp_path, vae=hybridge.RemoteVAE.of_server(address, "own"))
        assert torch.equal(case.picture(pipe, **words), expected)
        with pytest.warns(UserWarning, match="own of http.* is not saved"):
            pipe.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "transformer" / "config.json").is_file()


def test_tiling_of_videos_takes_the_sides_of_tiles_and_changes_nothing(tmp_path: Path) -> None:
    next(row for row in ROWS if row.name == "wan-2.1").make().save_pretrained(tmp_path)
    with running(create_app(LocalBackend({}, cold=[resolve(f"own={tmp_path}")]))) as address:
        vae = hybridge.RemoteVAE.of_server(address, "own")
    vae.enable_tiling(tile_sample_min_height=128, tile_sample_min_width=128)
    assert vae.use_tiling
    vae.enable_tiling(256, 256)
    assert vae.use_tiling
    vae.disable_tiling()
    assert not vae.use_tiling
