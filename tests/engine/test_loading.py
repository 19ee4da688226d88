"""Weights from folders and from a hub cache, and what goes wrong with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybridge.engine import EngineOptions, is_cached, loading, resolve
from hybridge.engine.options import choose_device, choose_dtype
from hybridge.errors import EngineFailure, ModelUnavailable, RequestError, UnknownModel
from hybridge.models import look_up

CPU = torch.device("cpu")


class TestResolve:
    def test_a_name_of_the_catalogue(self) -> None:
        assert resolve("sdxl") is look_up("sdxl")

    def test_a_folder(self, specs) -> None:
        spec = resolve(f"mine={specs['flux'].source}")
        assert (spec.name, spec.kind, spec.latent_channels, spec.spatial_factor) == ("mine", "kl", 16, 8)
        assert (spec.normalisation.scaling_factor, spec.normalisation.shift_factor) == (0.3611, 0.1159)

    def test_a_subfolder_of_a_pipeline(self, specs, tmp_path) -> None:
        shutil.copytree(specs["sdxl"].source, tmp_path / "pipeline" / "vae")
        spec = resolve(f"mine={tmp_path / 'pipeline'}:vae")
        assert spec.subfolder == "vae"
        assert loading.load(spec, torch.float32, CPU).config.scaling_factor == 0.13025

    def test_a_pipeline_without_its_subfolder_is_told_so(self, specs, tmp_path) -> None:
        shutil.copytree(specs["sdxl"].source, tmp_path / "vae")
        with pytest.raises(ModelUnavailable, match=":vae"):
            resolve(f"mine={tmp_path}")

    def test_a_tiny_autoencoder_knows_its_parent_by_its_name(self, specs) -> None:
        spec = resolve(f"mine={specs['taesd'].source}")
        assert (spec.kind, spec.parent, spec.normalisation.scaling_factor) == ("tiny", "sd-v1", 0.18215)

    @pytest.mark.parametrize("argument", ["=x", "Upper=x", "a/b=x", "name="])
    def test_what_is_no_model(self, argument) -> None:
        with pytest.raises(RequestError, match="NAME=PATH_OR_REPO"):
            resolve(argument)

    def test_a_missing_folder(self) -> None:
        with pytest.raises(ModelUnavailable, match="no folder for x"):
            resolve("x=/no/such/folder")

    def test_an_unknown_name(self) -> None:
        with pytest.raises(UnknownModel, match="Try: flux"):
            resolve("fluxx")


class TestLoad:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_weights_come_in_the_dtype_asked_for(self, specs, dtype) -> None:
        module = loading.load(specs["flux"], dtype, CPU)
        assert {p.dtype for p in module.parameters()} == {dtype}
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())

    def test_pickled_weights_are_refused(self, specs, tmp_path) -> None:
        shutil.copy(Path(specs["sdxl"].source) / "config.json", tmp_path)
        torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
        with pytest.raises(ModelUnavailable, match="never unpickles"):
            loading.load(replace(specs["sdxl"], source=str(tmp_path)), torch.float32, CPU)

    def test_weights_cut_short(self, specs, tmp_path) -> None:
        folder = Path(shutil.copytree(specs["sdxl"].source, tmp_path / "cut"))
        weights = folder / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelUnavailable, match="cannot be read"):
            loading.load(replace(specs["sdxl"], source=str(folder)), torch.float32, CPU)

    def test_weights_of_another_model(self, specs) -> None:
        wrong = replace(specs["sdxl"], source=specs["flux"].source)
        with pytest.raises(ModelUnavailable, match=r"16 latent channels.*expected AutoencoderKL with 4"):
            loading.load(wrong, torch.float32, CPU)

    def test_a_config_that_is_not_json(self, tmp_path) -> None:
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelUnavailable, match="not JSON"):
            resolve(f"x={tmp_path}")


def hub_cache(root: Path, repository: str, files: Path, subfolder: str = "") -> None:
    """A cache as the hub's own client lays it out, holding one snapshot."""
    repo = root / f"models--{repository.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("0" * 40)
    shutil.copytree(files, snapshot / subfolder)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)


def test_from_the_hubs_cache_offline(specs, tmp_path) -> None:
    """The real loading code of a catalogue row, in a process of its own: the hub reads its settings once."""
    hub_cache(tmp_path, "madebyollin/sdxl-vae-fp16-fix", Path(specs["sdxl"].source))
    hub_cache(tmp_path, "black-forest-labs/FLUX.1-schnell", Path(specs["flux"].source), "vae")
    code = """
import json
from hybridge.engine import Engine, is_cached
from hybridge.errors import ModelUnavailable
from hybridge.models import look_up
found = {name: Engine.load(look_up(name)).weights_bytes for name in ("sdxl", "flux")}
cached = [is_cached(look_up(name)) for name in ("sdxl", "flux", "sd3")]
try:
    Engine.load(look_up("sd3"))
except ModelUnavailable as error:
    print(json.dumps([found, cached, str(error)]))
"""
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, cached, message = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"sdxl", "flux"}
    assert cached == [True, True, False]
    assert "HF_HUB_OFFLINE is set" in message
    assert "hybridge models --download sd3" in message


def test_a_folder_counts_as_cached(specs) -> None:
    assert is_cached(specs["flux"])


class TestChoices:
    def test_a_cpu_runs_in_float32_and_says_why(self) -> None:
        choice = choose_dtype("auto", look_up("flux"), CPU)
        assert choice.value is torch.float32
        assert "exact" in choice.reason

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("sdxl", torch.float16), ("flux", torch.bfloat16), ("sdxl-original", torch.float32)],
    )
    def test_a_gpu_runs_in_what_the_weights_survive(self, name, expected, monkeypatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        assert choose_dtype("auto", look_up(name), torch.device("cuda")).value is expected

    def test_an_old_gpu_without_bfloat16_runs_flux_in_float32(self, monkeypatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
        assert choose_dtype("auto", look_up("flux"), torch.device("cuda")).value is torch.float32

    def test_float16_is_refused_where_it_overflows(self) -> None:
        with pytest.raises(EngineFailure, match="overflow"):
            choose_dtype("float16", look_up("sdxl-original"), CPU)
        assert choose_dtype("bfloat16", look_up("sdxl-original"), CPU).value is torch.bfloat16

    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(EngineFailure, match="nonsense"):
            choose_device("nonsense")
        assert choose_device("cpu").reason == "asked for"

    def test_options_are_frozen(self) -> None:
        with pytest.raises(AttributeError):
            EngineOptions().device = "cpu"  # type: ignore[misc]
