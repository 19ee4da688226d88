"""What is advised where the denoiser and T5 are larger than the card; and the lines to paste, which are run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.errors import TooLarge
from hybridge.lab.advisor import advice
from hybridge.lab.advisor.advice import Advice, advise, picture, title
from hybridge.lab.advisor.options import BITSANDBYTES, options
from hybridge.lab.advisor.snippet import lines
from hybridge.lab.estimator.phases import estimate
from hybridge.lab.estimator.types import Setup

GB = 10**9

# The transformer: 11.898 G numbers in linear layers, 3 M beside them.  T5: 3.624 G in linear layers that are
# narrowed, 1.007 G in those that never are, 0.132 G in embeddings.
TRANSFORMER = {"bf16": 2 * 11_901_408_320, "fp8": 11_898_322_944, "nf4": 11_898_322_944 * 0.5625}
BESIDE = 2 * 3_085_376
T5 = {
    "bf16": 2 * 4_762_310_656,
    "int8": 3_623_878_656 + 4 * 1_006_632_960 + 2 * 131_799_040,
    "nf4": 0.5625 * 3_623_878_656 + 4 * 1_006_632_960 + 2 * 131_799_040,
}
CLIP, VAE = 2 * 123_060_480, 2 * 83_819_683


def flux(vram_gb: int, ram_gb: int | None = None, **more: Any) -> Advice:
    return advise(Setup("flux-dev"), vram_gb * GB, ram_bytes=None if ram_gb is None else ram_gb * GB, **more)


@pytest.mark.parametrize(
    ("vram_gb", "ram_gb", "stack"),
    [
        # 11.9 GB in eight bits fit 16 GB, and not 12 GB with what is on top; 6.7 GB in four bits fit 8 GB.
        (16, 64, ("bf16", "fp8-storage", "model-offload")),
        (16, 32, ("bf16", "fp8-storage", "prompts-first", "model-offload")),
        (12, 64, ("bf16", "bitsandbytes-nf4", "model-offload")),
        (12, 16, ("bf16", "bitsandbytes-nf4", "prompts-first", "model-offload")),
        # T5 takes 9.5 GB, in eight bits 7.9 GB, in four 6.3 GB.
        (12, 8, ("bf16", "bitsandbytes-nf4", "prompts-first", "text-int8", "model-offload")),
        (8, 64, ("bf16", "bitsandbytes-nf4", "prompts-first", "text-nf4", "model-offload")),
        (8, 8, ("bf16", "bitsandbytes-nf4", "prompts-first", "text-nf4", "model-offload")),
        # No denoiser fits 6 GB as a whole.
        (6, 96, ("bf16", "group-offload")),
        (6, 64, ("bf16", "prompts-first", "group-offload")),
        (6, 32, ("bf16", "fp8-storage", "prompts-first", "group-offload")),
    ],
)
def test_flux_fits_the_card_and_the_host(vram_gb: int, ram_gb: int, stack: tuple[str, ...]) -> None:
    made = flux(vram_gb, ram_gb)
    assert made.choice.stack == stack
    assert made.choice.needs_bytes <= vram_gb * GB
    assert made.choice.estimate.host_bytes <= ram_gb * GB
    assert made.fits(made.choice)


def weights(*stack: str) -> dict[str, int]:
    return {phase.name: phase.weights_bytes for phase in estimate(Setup("flux-dev", ("bf16", *stack))).phases}


def test_weights_by_phase() -> None:
    narrow = weights("bitsandbytes-nf4", "prompts-first", "text-nf4", "model-offload")
    assert narrow["encode prompt"] == pytest.approx(T5["nf4"] + CLIP, abs=1)
    assert narrow["denoise"] == pytest.approx(TRANSFORMER["nf4"] + BESIDE, abs=1)
    assert narrow["decode"] == VAE
    all_there = weights("fp8-storage", "prompts-first")
    assert all_there["encode prompt"] == T5["bf16"] + CLIP
    assert all_there["denoise"] == all_there["decode"] == TRANSFORMER["fp8"] + BESIDE + VAE
    assert weights("prompts-first", "text-int8", "group-offload") == {
        "encode prompt": T5["int8"] + CLIP,
        "denoise": 0,
        "decode": 0,
    }


@pytest.mark.parametrize(
    ("stack", "nbytes"),
    [
        ((), TRANSFORMER["bf16"] + T5["bf16"] + CLIP + VAE),
        # It is loaded in half precision and narrowed afterwards.
        (("fp8-storage", "model-offload"), TRANSFORMER["bf16"] + T5["bf16"] + CLIP + VAE),
        (("prompts-first", "model-offload"), TRANSFORMER["bf16"] + VAE),
        # bitsandbytes narrows on the card; what is offloaded waits in the host's memory.
        (("bitsandbytes-nf4", "prompts-first"), T5["bf16"] + CLIP),
        (("bitsandbytes-nf4", "prompts-first", "text-nf4"), CLIP),
        (
            ("bitsandbytes-nf4", "prompts-first", "text-nf4", "model-offload"),
            TRANSFORMER["nf4"] + BESIDE + VAE,
        ),
        # T5 being narrowed says nothing of the denoiser.
        (("fp8-storage", "prompts-first", "text-nf4"), TRANSFORMER["bf16"] + VAE),
        (("group-offload",), 2 * (TRANSFORMER["bf16"] + T5["bf16"] + CLIP + VAE)),
    ],
)
def test_bytes_of_the_host(stack: tuple[str, ...], nbytes: float) -> None:
    assert estimate(Setup("flux-dev", ("bf16", *stack))).host_bytes == pytest.approx(nbytes, abs=2)


def test_four_bits_are_another_picture_and_only_where_they_are_needed() -> None:
    made = flux(12)
    assert picture(made.choice) == "another one"
    assert (made.choice.narrowed, flux(16).choice.narrowed, flux(6).choice.narrowed) == (2, 1, 0)
    assert flux(12, quality="best").choice.stack == ("bf16", "group-offload")
    names = {name for option in options(Setup("sdxl"), 8 * GB) for name in option.stack}
    assert names.isdisjoint(BITSANDBYTES | {"prompts-first"})
    assert any("bitsandbytes-nf4" in option.stack for option in options(Setup("sdxl"), 4 * GB))
    apart = {"bitsandbytes-nf4", "group-offload"}
    assert not any(apart <= set(option.stack) for option in options(Setup("sdxl"), 4 * GB))


def test_bitsandbytes_is_for_cuda() -> None:
    for device in ("cpu", "mps", "xpu"):
        stacks = [option.stack for option in options(Setup("flux-dev"), 8 * GB, device=device)]
        assert all(BITSANDBYTES.isdisjoint(stack) for stack in stacks)
        assert any("prompts-first" in stack for stack in stacks)
    assert any("text-nf4" in option.stack for option in options(Setup("flux-dev"), 8 * GB, device="cuda:1"))


def test_what_the_host_leaves_out_is_said() -> None:
    made = flux(6, 32)
    assert "Left out: the VAE as it is, layer by layer, which takes 67.48 GB of the host's memory" in made.reason
    assert "Weights take 24.14 GB of the host's memory." in made.reason
    assert "weights may take 32 GB of the host's memory" in made.assumed
    assert "Left out" not in flux(6, 96).reason


def test_a_host_that_is_too_small_is_named_with_what_would_do() -> None:
    with pytest.raises(TooLarge, match=r"expected at least 23\.82 GB") as caught:
        flux(6, 16)
    assert "16 GB of the host's memory" in str(caught.value)
    assert flux(6, 24).choice.estimate.host_bytes <= 24 * GB


@pytest.mark.parametrize("found", [None, "0.50.2"])
def test_what_must_be_installed_is_said(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "version", lambda _: found)
    made = flux(12)
    assert ("pip install bitsandbytes" in made.reason) == (found is None)
    assert made.code.startswith("# pip install bitsandbytes\n")
    assert "bitsandbytes" not in flux(16).reason


# ------------------------------------------------------------------------------------------ the code

STACKS = [
    ("bf16",),
    ("bf16", "prompts-first"),
    ("bf16", "fp8-storage", "prompts-first", "model-offload"),
    ("bf16", "tiny-vae", "prompts-first", "group-offload"),
    ("bf16", "exact-vae", "bitsandbytes-nf4"),
    ("bf16", "bitsandbytes-nf4", "prompts-first", "text-int8", "model-offload"),
    ("bf16", "prompts-first", "text-nf4", "group-offload"),
]


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is asked to be narrowed, by component.

    bitsandbytes needs a GPU to load: the configs are diffusers' and transformers' own and are checked by them; then
    the tiny pipeline is loaded without.
    """
    asked: dict[str, Any] = {}
    load: Callable[..., Any] = FluxPipeline.from_pretrained
    version = importlib.metadata.version

    def loaded(*arguments: Any, quantization_config: Any = None, **more: Any) -> Any:
        asked.update(quantization_config.quant_mapping if quantization_config else {})
        return load(*arguments, **more)

    monkeypatch.setattr(FluxPipeline, "from_pretrained", loaded)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.50.2" if name == "bitsandbytes" else version(name)
    )
    return asked


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_the_pasted_code_makes_a_picture(
    stack: tuple[str, ...],
    tiny_flux: Path,
    tiny_folder: Path,
    narrowed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = Setup("flux-dev", stack, 64, 64, steps=1)
    program = lines(setup, path=str(tiny_flux), vae_path=str(tiny_folder / "taesd"), device="cpu")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, "pasted", "exec"), names)  # noqa: S102 - that is what is tested
    with Image.open(tmp_path / "lighthouse.png") as made:
        assert made.size == (64, 64)
    assert (names["pipe"].text_encoder_2 is None) == ("prompts-first" in stack)
    assert {name: type(config).__module__.split(".")[0] for name, config in narrowed.items()} == {
        component: library
        for technique, component, library in (
            ("bitsandbytes-nf4", "transformer", "diffusers"),
            ("text-int8", "text_encoder_2", "transformers"),
            ("text-nf4", "text_encoder_2", "transformers"),
        )
        if technique in stack
    }
    for name, config in narrowed.items():
        assert config.load_in_8bit == ("text-int8" in stack and name == "text_encoder_2")
        assert config.load_in_8bit or (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (
            "nf4",
            torch.bfloat16,
        )


def test_the_code_for_stable_diffusion_3() -> None:
    code = lines(Setup("sd3", ("fp16", "prompts-first", "text-int8"), 1024, 1024, steps=28))
    compile(code, "pasted", "exec")
    assert '{"text_encoder_3": transformers.BitsAndBytesConfig(load_in_8bit=True)}' in code
    given = "prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds"
    assert f"{given} = pipe.encode_prompt(" in code
    assert all(f" {name}=None," in code for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))


def test_the_command_takes_the_hosts_memory() -> None:
    asked = ["lab", "advise", "--pipeline", "flux-dev", "--vram", "8GB", "--ram", "16GB"]
    said = CliRunner().invoke(application, asked, env={"COLUMNS": "250"})
    assert said.exit_code == 0, said.output
    assert title(flux(8, 16).choice) in said.stdout
    assert "host GB" in said.stdout
    assert "weights may take 16 GB of the host's memory" in said.stdout
