"""VAEs as people have them: single files, whole checkpoints, variants, a hub cache's folders, pickles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_tiny
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from vae_files import in_latent_diffusions_layout

from hybridge.engine import Engine, EngineOptions, loading, resolve
from hybridge.errors import ModelUnavailable, RequestError, UnknownModel

CPU = EngineOptions(device="cpu", dtype="float32")


def full(latent_channels: int = 4, *, quant_conv: bool = True) -> AutoencoderKL:
    """As in latent diffusion, 32 groups and all, with 32 and 64 channels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=latent_channels,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
    ).eval()


def same_pictures(spec_argument: str, module: torch.nn.Module) -> None:
    engine = Engine.load(resolve(spec_argument), CPU)
    latents = torch.randn(1, engine.spec.latent_channels, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(engine.decode(latents), module.decode(latents).sample, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_a_file_of_latent_diffusion(prefix: str, tmp_path: Path) -> None:
    vae, path = full(), tmp_path / "x.safetensors"
    save_file(in_latent_diffusions_layout(vae.state_dict(), prefix) | {"loss.logvar": torch.zeros(1)}, path)
    same_pictures(f"mine={path}:sd-v1", vae)
    module = loading.load(resolve(f"mine={path}:sd-v1"), torch.float32, torch.device("cpu"))
    expected = vae.state_dict()
    assert all(torch.equal(part, expected[name]) for name, part in module.state_dict().items())


def test_a_file_of_diffusers(tmp_path: Path) -> None:
    vae, path = full(16, quant_conv=False), tmp_path / "x.safetensors"
    save_file(vae.state_dict(), path)
    same_pictures(f"mine={path}:flux", vae)
    assert resolve(f"mine={path}:flux").normalisation.shift_factor == 0.1159


def test_weights_beside_their_config(specs, tmp_path: Path) -> None:
    spec = resolve(f"mine={specs['sdxl'].source}/diffusion_pytorch_model.safetensors")
    assert spec.normalisation.scaling_factor == 0.13025
    same_pictures(f"mine={spec.source}", AutoencoderKL.from_pretrained(specs["sdxl"].source))


@pytest.mark.parametrize(
    ("others", "channels", "prefix", "factor", "half"),
    [
        ("cond_stage_model.x", 4, "first_stage_model.", 0.18215, "bfloat16"),
        ("conditioner.embedders.0.x", 4, "first_stage_model.", 0.13025, None),
        ("model.diffusion_model.joint_blocks.0.x", 16, "first_stage_model.", 1.5305, "bfloat16"),
        ("model.diffusion_model.double_blocks.0.x", 16, "vae.", 0.3611, "bfloat16"),
    ],
)
def test_a_whole_checkpoint(others, channels, prefix, factor, half, tmp_path: Path) -> None:
    """Its other tensors may be of any dtype and are not read: nothing but their header is right."""
    vae, path = full(channels, quant_conv=channels == 4), tmp_path / "x.safetensors"
    tensors = in_latent_diffusions_layout(vae.state_dict(), prefix)
    save_file(tensors | {others: torch.zeros(3, dtype=torch.int64)}, path)
    spec = resolve(f"mine={path}")
    assert (spec.normalisation.scaling_factor, spec.half) == (factor, half)
    assert "told by its checkpoint" in spec.title
    same_pictures(f"mine={path}", vae)


def test_a_tiny_autoencoder(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(small_tiny(4).state_dict(), path)
    with pytest.raises(ModelUnavailable, match=r":taesd, or :taesdxl"):
        resolve(f"mine={path}")
    spec = resolve(f"mine={path}:taesdxl")
    assert (spec.kind, spec.parent, spec.normalisation.scaling_factor) == ("tiny", "sdxl", 0.13025)


def test_a_scaling_that_shapes_do_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(in_latent_diffusions_layout(full().state_dict()), path)
    with pytest.raises(ModelUnavailable, match=r"one of sd-v1, sdxl, sdxl-original.*mine=.*:sd-v1"):
        resolve(f"mine={path}")
    with pytest.raises(ModelUnavailable, match="is not flux's"):
        resolve(f"mine={path}:flux")
    with pytest.raises(UnknownModel):
        resolve(f"mine={path}:vae")
    assert "told by its name" in resolve(f"sdxl={path}").title


def test_channels_whose_norms_shapes_do_not_tell(specs, tmp_path: Path) -> None:
    shutil.copy(Path(specs["sdxl"].source) / "diffusion_pytorch_model.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(ModelUnavailable, match=r"saw blocks of 8, 8, 16, 16 channels"):
        resolve(f"mine={tmp_path}/x.safetensors:sdxl")


def test_weights_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"lora_up.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelUnavailable, match="no VAE for mine: saw 1 tensors, among them lora_up"):
        resolve(f"mine={path}")
    save_file({"decoder.layers.0.layers.0.weight": torch.zeros(2)}, path)  # Mochi's, as its authors name it
    with pytest.raises(ModelUnavailable, match=r"Try: mine=FOLDER_OR_REPOSITORY:vae .* in diffusers' layout"):
        resolve(f"mine={path}")
    save_file(in_latent_diffusions_layout(full(64).state_dict()), path)
    with pytest.raises(ModelUnavailable, match=r"no model that is known. Try: mine=FOLDER_OR_REPOSITORY:vae"):
        resolve(f"mine={path}")
    tensors = in_latent_diffusions_layout(full().state_dict())
    del tensors["decoder.norm_out.bias"]
    save_file(tensors, path)
    with pytest.raises(ModelUnavailable, match=r"no decoder\.conv_norm_out\.bias"):
        Engine.load(resolve(f"mine={path}:sdxl"), CPU)
    save_file(tensors | {"decoder.norm_out.bias": torch.zeros(32, dtype=torch.int8)}, path)
    with pytest.raises(ModelUnavailable, match=r"are no floats: saw decoder\.norm_out\.bias"):
        resolve(f"mine={path}:sdxl")
    for start, told in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "saw a web page, which a failed download left"),
        (b'{"error": "Unauthorized"}', "saw JSON, which a failed download left"),
        (b"GGUF\3\0\0\0\1", "saw GGUF, which is not read"),
        (b"PK\3\4\0\0\0\0\0", "saw a file of torch.save's; `hybridge convert`"),
        (b"\x80\2}q\0X\1\0\0", "saw a pickle; `hybridge convert`"),
    ):
        path.write_bytes(start)
        with pytest.raises(ModelUnavailable, match=told):
            resolve(f"mine={path}:sdxl")


def test_fp8_weights_with_scales_are_refused(specs, tmp_path: Path) -> None:
    """Without their scales, which ComfyUI and others keep beside them, they would give another picture."""
    tensors = in_latent_diffusions_layout(full().state_dict())
    name = "decoder.mid.block_1.conv1.weight"
    tensors[name] = (tensors[name] / 2).to(torch.float8_e4m3fn)
    path = tmp_path / "x.safetensors"
    for scale in ("scale_weight", "weight_scale"):
        save_file(tensors | {name.replace("weight", scale): torch.tensor(2.0)}, path)
        with pytest.raises(ModelUnavailable, match=rf"are quantised: saw decoder.mid_block.*{scale}"):
            Engine.load(resolve(f"mine={path}:sdxl"), CPU)
    folder = Path(shutil.copytree(specs["sdxl"].source, tmp_path / "folder"))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(
        weights | {"decoder.conv_in.weight_scale": torch.ones(1)}, folder / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(ModelUnavailable, match=r"are quantised: saw decoder\.conv_in\.weight_scale"):
        Engine.load(resolve(f"mine={folder}"), CPU)


def test_a_folder_of_single_files_says_which_to_name(tmp_path: Path) -> None:
    folder = tmp_path / "VAE"
    folder.mkdir()
    save_file(in_latent_diffusions_layout(full().state_dict()), folder / "b.safetensors")
    for source in (folder, f"{folder}:b.safetensors"):
        with pytest.raises(ModelUnavailable, match=rf"no config.json for mine. Try: .*mine={folder}/b.safetensors"):
            resolve(f"mine={source}")
    (folder / "b.safetensors").rename(folder / "b.ckpt")
    with pytest.raises(ModelUnavailable, match=rf"hybridge convert {folder}/b.ckpt"):
        resolve(f"mine={folder}")


@pytest.mark.parametrize("ending", ["ckpt", "pt", "pth", "bin"])
def test_pickled_files_say_how_to_convert_them(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"x.{ending}").write_bytes(b"\x80\x02")
    with pytest.raises(ModelUnavailable, match=rf"hybridge convert .*x\.{ending} .*x\.safetensors"):
        resolve(f"mine={tmp_path}/x.{ending}")


def test_a_folder_with_the_fp16_variant_alone(specs, tmp_path: Path) -> None:
    shutil.copy(Path(specs["sdxl"].source) / "config.json", tmp_path)
    weights = load_file(Path(specs["sdxl"].source) / "diffusion_pytorch_model.safetensors")
    halves = {name: part.half() for name, part in weights.items()}
    save_file(halves, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    module = loading.load(resolve(f"mine={tmp_path}"), torch.float16, torch.device("cpu"))
    assert all(torch.equal(part, halves[name]) for name, part in module.state_dict().items())


def test_the_folder_of_a_repository_in_the_hubs_cache(specs, tmp_path: Path) -> None:
    root = tmp_path / "models--someone--vae"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    (root / "snapshots" / "later").mkdir(parents=True)
    shutil.copytree(specs["sdxl"].source, root / "snapshots" / "abc")
    same_pictures(f"mine={root}", AutoencoderKL.from_pretrained(specs["sdxl"].source))


def test_home_folders(specs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(specs["sdxl"].source, tmp_path / "vae")
    assert resolve("mine=~/vae").source == str(tmp_path / "vae")
    with pytest.raises(ModelUnavailable, match="no folder for mine"):
        resolve("mine=~/nothing")


@pytest.mark.parametrize(
    "source",
    [
        *("./x", "../x/y", "/x", "x.safetensors", "a/b.ckpt", "~nobody/x", "a\\b", "x.safetensors:sdxl", "here"),
        *("file:///x", "https://example.com/x", "https://huggingface.co/a/b", "hf://a/b"),
    ],
)
def test_the_hub_is_not_asked_for_paths(source: str, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(loading, "download", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    hint = "mine=a/b" if source.endswith("a/b") else "."
    with pytest.raises((ModelUnavailable, RequestError), match=hint):
        resolve(f"mine={source}")
