"""What a worker does, done in this process: every rival computes the same, and says how far it is from untiled."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybridge.errors import TooLarge
from hybridge.lab.vae_bench import rivals, subject, worker
from hybridge.lab.vae_bench.cases import Case
from hybridge.lab.vae_bench.rivals import RIVALS


@pytest.fixture(autouse=True)
def times_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short it is: nothing here is about how long it took."""
    monkeypatch.setattr(worker, "_TIMED_S", 0.0)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Five frames of 64 pixels, decoded in float32 by a small HunyuanVideo."""
    config = {
        "_class_name": "AutoencoderKLHunyuanVideo",
        "latent_channels": 4,
        "block_out_channels": [16, 16, 16, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    folder = tmp_path_factory.mktemp("film")
    (folder / "config.json").write_text(json.dumps(config))
    return Case(f"film={folder}", "decode", 64, "float32", "cpu", frames=5)


def reference(case: Case, folder: Path) -> str:
    path = str(folder / "reference.safetensors")
    assert worker.make_reference({"case": asdict(case), "path": path}, silent) == {}
    return path


def measure(case: Case, rival: str, **changed: Any) -> dict[str, Any]:
    job = {"case": asdict(case), "rival": rival, "judges": True, "reference": None}
    return worker.measure({**job, "budget_bytes": None, "tile_pixels": None, **changed}, silent)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")  # OpenVINO's converter
@pytest.mark.parametrize("task", ["decode", "encode"])
def test_rivals_agree_to_rounding_and_tiling_does_not(case, task, tmp_path) -> None:
    case = replace(case, task=task)
    path = reference(case, tmp_path)
    assert load_file(path)["picture"].dtype == torch.float64
    names = ["exact", "diffusers", "channels-last"]
    names += ["openvino"] if importlib.util.find_spec("openvino") else []
    for name in names:
        measured = measure(case, name, reference=path)
        assert measured["relative_l2"] < 1e-5, name
        assert measured["psnr_db"] > 90
        assert measured["reference"] == "float64"
        assert measured["peak_bytes"] > 0
        assert measured["seconds"]
        assert min(measured["seconds"]) > 0
        assert ("plan" in measured) == (name == "exact")
    tiled = measure(case, "tiled", reference=path, tile_pixels=32)
    assert tiled["tile_pixels"] == 32
    assert tiled["relative_l2"] > 1e-3


def test_a_round_that_does_not_judge_only_times(case) -> None:
    measured = measure(case, "diffusers", judges=False)
    assert set(measured) == {"seconds", "first_call_s"}


def test_a_call_of_minutes_is_made_once(case, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(rivals, "_FIRST_CALL_PIXELS", case.size - 1)
    monkeypatch.setattr(rivals, "_SMALL_PIXELS", 32)
    monkeypatch.setattr(worker, "_LONG_S", 0.0)
    path = reference(case, tmp_path)
    for name in ("exact", "diffusers", "channels-last", "tiled"):
        sizes: list[torch.Size] = []

        def noted(module: Any, case: Case, given: torch.Tensor, sizes: list[torch.Size] = sizes) -> torch.Tensor:
            sizes.append(given.shape)
            return subject.forward(module, case, given)

        monkeypatch.setattr(rivals, "forward", noted)
        measured = measure(case, name, reference=path)
        small, large = sizes  # one each: watched, compared and timed at once
        assert small[2] * case.size == large[2] * 32
        assert len(measured["seconds"]) == 1
        assert measured["peak_bytes"] > 0
        assert (measured["relative_l2"] < 1e-5) == (name != "tiled")
        assert len(measure(case, name, judges=False)["seconds"]) == 1


def test_a_plain_forward_that_the_machine_cannot_hold_is_not_begun(case, tmp_path) -> None:
    case = replace(case, model="sd-v1", size=65536)
    with pytest.raises(TooLarge, match="at least 12"):
        reference(case, tmp_path)
    for name in ("diffusers", "channels-last", "compile", "openvino"):
        with pytest.raises(TooLarge, match="does not fit"):
            measure(case, name)


def test_half_precision_is_compared_with_float32_of_the_same_input(case, tmp_path) -> None:
    case = replace(case, dtype="bfloat16")
    path = reference(case, tmp_path)
    assert load_file(path)["picture"].dtype == torch.float32
    assert 1e-3 < measure(case, "diffusers", reference=path)["relative_l2"] < 1e-1


def test_ours_is_planned_within_its_budget_or_refused(case) -> None:
    plan = measure(case, "exact", budget_bytes=2**30)["plan"]
    assert plan["peak_bytes"] <= 2**30
    assert "1 GiB" in plan["reason"]
    with pytest.raises(TooLarge, match="at least"):
        measure(case, "exact", budget_bytes=1)


def test_random_weights_are_seeded_and_real_ones_are_read(case, specs) -> None:
    def first(case: Case) -> torch.Tensor:
        return next(subject.build(case).parameters())

    saved = load_file(Path(specs["sd-v1"].source) / "diffusion_pytorch_model.safetensors")
    assert torch.equal(first(replace(case, weights=True)), saved["encoder.conv_in.weight"])
    assert torch.equal(first(case), first(case))
    assert not torch.equal(first(case), saved["encoder.conv_in.weight"])
    assert not torch.equal(first(case), first(replace(case, seed=1)))


def test_distance() -> None:
    untiled = torch.tensor([0.0, 3.0, 4.0])
    found = subject.distance(untiled + torch.tensor([0.0, 0.0, 0.5]), untiled)
    assert found["relative_l2"] == pytest.approx(0.1)
    assert found["psnr_db"] == pytest.approx(10 * torch.log10(torch.tensor(16 / (0.25 / 3))).item())
    assert subject.distance(untiled, untiled) == {"relative_l2": 0.0, "psnr_db": None}
    assert subject.distance(untiled * float("nan"), untiled) == {"relative_l2": None, "psnr_db": None}


def test_who_cannot_take_part_says_why(case, monkeypatch, tmp_path) -> None:
    assert RIVALS["exact"].why_missing(case) is None
    assert RIVALS["float32"].why_missing(replace(case, dtype="bfloat16")) is None
    assert RIVALS["float32"].why_missing(replace(case, dtype="float32")) == "that is how it comes"
    reason = RIVALS["openvino"].why_missing(replace(case, device="meta"))
    assert reason in ("openvino is measured on CPUs, not on meta", "openvino is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert RIVALS["compile"].why_missing(case) == "no C++ compiler is installed"


@pytest.mark.parametrize("task", ["decode", "encode"])
def test_a_film_is_computed_all_at_once(film, task, tmp_path) -> None:
    case = replace(film, task=task)
    path = reference(case, tmp_path)
    assert load_file(path)["picture"].shape == ((1, 3, 5, 64, 64) if task == "decode" else (1, 4, 2, 8, 8))
    for name in ("exact", "diffusers", "channels-last"):
        measured = measure(case, name, reference=path)
        assert measured["relative_l2"] < 1e-5, name
        assert measured["peak_bytes"] > 0
    tiled = measure(case, "tiled", reference=path, tile_pixels=32)
    assert tiled["tile_pixels"] == 32
    for name in ("compile", "openvino"):
        assert RIVALS[name].why_missing(case) == "it is measured with models of pictures alone"
