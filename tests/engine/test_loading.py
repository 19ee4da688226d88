"""Weights from folders and from a hub cache, and what goes wrong with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from hub import serving_hub
from safetensors.torch import load_file, save_file

from hybridge.engine import Engine, EngineOptions, is_cached, loading, resolve
from hybridge.engine.options import choose_device, choose_dtype
from hybridge.errors import EngineFailure, ModelUnavailable, RequestError, UnknownModel
from hybridge.models import look_up

CPU = torch.device("cpu")

#: Of this tree, whatever is installed.
SOURCE = str(Path(__file__).parents[2] / "src")


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

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_it_is_what_diffusers_loads(self, specs, tmp_path, dtype) -> None:
        for name, folder in {name: Path(specs[name].source) for name in ("sdxl", "taesd")}.items():
            vae_class = getattr(diffusers, specs[name].class_name)
            vae_class.from_pretrained(folder).save_pretrained(tmp_path / name, max_shard_size="50KB")
            assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
            theirs = vae_class.from_pretrained(folder, torch_dtype=dtype)
            for source in (folder, tmp_path / name):
                module = loading.load(replace(specs[name], source=str(source)), dtype, CPU)
                assert type(module) is vae_class
                ours, expected = module.state_dict(), theirs.state_dict()
                assert ours.keys() == expected.keys()
                assert all(torch.equal(ours[key], expected[key]) for key in ours)
                assert all(ours[key].dtype == expected[key].dtype for key in ours)

    def test_names_of_old_weights(self, specs, tmp_path) -> None:
        shutil.copytree(specs["sdxl"].source, tmp_path, dirs_exist_ok=True)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        weights = load_file(file)
        expected = {name: part.clone() for name, part in weights.items()}
        for new, before in old.items():
            weights = {name.replace(f".{new}.", f".{before}."): part.clone() for name, part in weights.items()}
        assert any("query" in name for name in weights)
        save_file(weights, file)
        module = loading.load(replace(specs["sdxl"], source=str(tmp_path)), torch.float32, CPU)
        assert all(torch.equal(part, expected[name]) for name, part in module.state_dict().items())

    def test_weights_that_are_missing(self, specs, tmp_path) -> None:
        shutil.copytree(specs["sdxl"].source, tmp_path, dirs_exist_ok=True)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        weights = {name: part.clone() for name, part in load_file(file).items() if name != "decoder.conv_out.bias"}
        save_file(weights, file)
        with pytest.raises(ModelUnavailable, match=r"incomplete.*no decoder\.conv_out\.bias"):
            loading.load(replace(specs["sdxl"], source=str(tmp_path)), torch.float32, CPU)

    def test_other_threads_see_nothing_of_it(self, specs, monkeypatch) -> None:
        """diffusers sets the default dtype and replaces functions of torch.nn while it builds."""

        def refuse(*_: object) -> None:
            raise AssertionError("process-wide state was touched")

        watched = torch.nn.Module.register_parameter, torch.nn.init.kaiming_uniform_, torch.nn.init.uniform_
        seen = []
        from_config = diffusers.AutoencoderKL.from_config.__func__

        def watch(cls, *args, **named):
            now = torch.nn.Module.register_parameter, torch.nn.init.kaiming_uniform_, torch.nn.init.uniform_
            seen.append(now == watched)
            return from_config(cls, *args, **named)

        monkeypatch.setattr(torch, "set_default_dtype", refuse)
        monkeypatch.setattr(diffusers.AutoencoderKL, "from_config", classmethod(watch))
        loading.load(specs["sdxl"], torch.bfloat16, CPU)
        assert seen == [True]

    def test_others_default_dtype_rounds_no_weight(self, specs) -> None:
        expected = loading.load(specs["sdxl"], torch.float32, CPU).state_dict()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)
        try:
            found = loading.load(specs["sdxl"], torch.float32, CPU).state_dict()
        finally:
            torch.set_default_dtype(before)
        assert all(torch.equal(part, expected[name]) for name, part in found.items())

    def test_pickled_weights_are_refused(self, specs, tmp_path) -> None:
        shutil.copy(Path(specs["sdxl"].source) / "config.json", tmp_path)
        torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
        with pytest.raises(ModelUnavailable, match="never unpickles"):
            loading.load(replace(specs["sdxl"], source=str(tmp_path)), torch.float32, CPU)

    def test_weights_cut_short(self, specs, tmp_path) -> None:
        folder = Path(shutil.copytree(specs["sdxl"].source, tmp_path / "cut"))
        weights = folder / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelUnavailable, match="damaged: saw a header of"):
            loading.load(replace(specs["sdxl"], source=str(folder)), torch.float32, CPU)

    def test_weights_of_another_model(self, specs) -> None:
        wrong = replace(specs["sdxl"], source=specs["flux"].source)
        with pytest.raises(ModelUnavailable, match=r"16 latent channels.*expected AutoencoderKL with 4"):
            loading.load(wrong, torch.float32, CPU)

    def test_a_config_that_is_not_json(self, tmp_path) -> None:
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelUnavailable, match="not JSON"):
            resolve(f"x={tmp_path}")


PROGRAM = """
import json, sys
from hybridge.engine import Engine, is_cached, resolve
from hybridge.errors import ModelUnavailable
found = {}
for argument in sys.argv[1:]:
    try:
        found[argument] = Engine.load(resolve(argument)).weights_bytes
    except ModelUnavailable as error:
        found[argument] = str(error)
print(json.dumps(found))
"""


def load_in_a_process_of_its_own(*arguments: str, **variables: str) -> tuple[dict[str, object], str]:
    """What became of each model, and what the terminal showed; the hub's client reads its settings only once."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={"PATH": "", "PYTHONPATH": SOURCE, "PYTHONWARNINGS": "ignore", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_from_the_hub_then_from_its_cache(specs, tmp_path) -> None:
    """The real loading code of catalogue rows against a hub on loopback, then without it."""
    flux = tmp_path / "hub" / "flux"
    shutil.copytree(specs["flux"].source, flux / "vae")
    (flux / "transformer").mkdir()
    (flux / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"gigabytes that nobody asked for")
    (flux / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"the same weights once more")
    (flux / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    variant = tmp_path / "variant"
    shutil.copytree(specs["taesd"].source, variant)
    plain = variant / "diffusion_pytorch_model.safetensors"
    plain.rename(variant / "diffusion_pytorch_model.fp16.safetensors")
    repositories = {
        "black-forest-labs/FLUX.1-schnell": flux,
        "madebyollin/sdxl-vae-fp16-fix": Path(specs["sdxl"].source),
        "stabilityai/stable-diffusion-3.5-medium": flux,
        "stabilityai/sdxl-vae": tmp_path,
        "madebyollin/taesd": variant,
    }
    gated = frozenset({"stabilityai/stable-diffusion-3.5-medium"})
    home = {"HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    with serving_hub(repositories, gated) as (address, fetched):
        found, shown = load_in_a_process_of_its_own(
            "flux", "sdxl", "sd3", "sd-v1", "sdxl-original", "taesd", HF_ENDPOINT=address, **home
        )
    assert found["flux"] == Engine.load(specs["flux"], EngineOptions(device="cpu", dtype="float32")).weights_bytes
    assert isinstance(found["sdxl"], int)
    assert isinstance(found["taesd"], int)  # the repository has the fp16 variant alone
    assert "sd3 is gated" in str(found["sd3"])
    assert "accept its licence at huggingface.co/stabilityai/stable-diffusion-3.5-medium" in str(found["sd3"])
    assert "the hub has no stabilityai/sd-vae-ft-mse" in str(found["sd-v1"])
    assert "no config.json for sdxl-original" in str(found["sdxl-original"])
    # Nothing but what is needed was fetched, with a progress bar.
    assert sorted(fetched) == [
        "config.json",
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert "100%" in shown

    offline, _ = load_in_a_process_of_its_own("flux", "sdxl", "taesd", "taef1", HF_HUB_OFFLINE="1", **home)
    assert [offline[name] for name in ("flux", "sdxl", "taesd")] == [
        found[name] for name in ("flux", "sdxl", "taesd")
    ]
    assert "HF_HUB_OFFLINE is set" in str(offline["taef1"])
    assert "hybridge models --download taef1" in str(offline["taef1"])


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

    @pytest.mark.parametrize("asked", ["float64", "nonsense"])
    def test_an_unknown_dtype(self, asked) -> None:
        with pytest.raises(EngineFailure, match="one of auto, float32, bfloat16, float16"):
            choose_dtype(asked, look_up("flux"), CPU)

    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(EngineFailure, match="nonsense"):
            choose_device("nonsense")
        assert choose_device("cpu").reason == "asked for"

    def test_options_are_frozen(self) -> None:
        with pytest.raises(AttributeError):
            EngineOptions().device = "cpu"  # type: ignore[misc]
