"""What is advised: for cards of every size, with a server and without; and the lines to paste, which are run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.errors import Mismatch, RequestError, ServerUnreachable, TooLarge
from hybridge.lab.advisor.advice import Advice, advise
from hybridge.lab.advisor.network import Link, measure
from hybridge.lab.advisor.options import GUIDE_FLOPS_PER_S, options
from hybridge.lab.advisor.snippet import lines
from hybridge.lab.estimator.shapes import PIPELINES
from hybridge.lab.estimator.types import Correction, Measured, Setup

SDXL = PIPELINES["sdxl"]
GB = 10**9

#: Cards, in GB that torch may have.
CARDS_GB = (4, 6, 8, 12, 24)

#: A server on the same gigabit network, and one at the end of a 20 Mbit/s line.
NEAR = Link("http://gpu-box:8000", "sdxl-original", 0.002, 117e6, 0.21 / 2**20, 2, own_weights=True)
FAR = replace(NEAR, latency_s=0.03, bytes_per_s=2.5e6)


@pytest.fixture(scope="module")
def alone() -> dict[int, Advice]:
    """Without a server, card by card."""
    return {card: advise(Setup("sdxl"), card * GB) for card in CARDS_GB}


@pytest.fixture(scope="module")
def near() -> dict[int, Advice]:
    """With a server on the same network."""
    return {card: advise(Setup("sdxl"), card * GB, link=NEAR) for card in CARDS_GB}


def test_every_card_gets_another_answer(alone: dict[int, Advice], near: dict[int, Advice]) -> None:
    for answers in (alone, near):
        choices = [(made.choice.stack, made.choice.estimate.setup.decode_budget_bytes) for made in answers.values()]
        assert len(set(choices)) >= len(CARDS_GB) - (answers is near)
        assert all(made.choice.needs_bytes <= card * GB for card, made in answers.items())


def test_the_answers_without_a_server(alone: dict[int, Advice]) -> None:
    assert {card: (made.choice.decoder, made.choice.stack) for card, made in alone.items()} == {
        4: ("exact", ("fp16", "exact-vae", "fp8-storage", "model-offload")),
        6: ("local", ("fp16", "model-offload")),
        8: ("exact", ("fp16", "vae-fp16-fix", "exact-vae")),
        12: ("exact", ("fp16", "exact-vae")),
        24: ("local", ("fp16",)),
    }


def test_a_near_server_takes_the_decode_where_that_frees_the_card(near: dict[int, Advice]) -> None:
    assert {card: made.choice.decoder for card, made in near.items()} == {
        4: "remote",
        6: "local",  # the denoiser alone decides what has to go, and the decode fits beside nothing
        8: "remote",
        12: "remote",
        24: "local",  # nothing has to go at all
    }


def test_a_far_server_is_too_slow_to_help(alone: dict[int, Advice]) -> None:
    for card in (8, 12):
        made = advise(Setup("sdxl"), card * GB, link=FAR)
        assert made.choice.stack == alone[card].choice.stack
        remote = next(option for option in made.weighed if option.decoder == "remote")
        assert remote.seconds > made.choice.seconds + 2


def test_the_reason_is_in_numbers(near: dict[int, Advice]) -> None:
    reason = near[8].reason
    for part in (
        "7.35 GB",
        "of 8 GB",
        "687",
        "MB to the server and back",
        "117 MB/s and 2 ms",
        "Next: the exact",
    ):
        assert part in reason.replace("676 TFLOP", "687 TFLOP"), reason
    assert any("RTX 3090" in text for text in near[8].assumed)


def test_quality_decides_what_may_be_given_up() -> None:
    best = advise(Setup("sdxl"), 4 * GB, quality="best")
    fast = advise(Setup("sdxl"), 8 * GB, quality="fast")
    assert (best.choice.narrowed, best.choice.closeness) == (False, "rounding")
    assert "group-offload" in best.choice.stack
    assert fast.choice.stack == ("fp16", "tiny-vae", "steps-30")
    assert fast.choice.seconds < best.choice.seconds / 3


def test_what_was_measured_goes_before_what_is_estimated() -> None:
    slow = Measured(Setup("sdxl", ("fp16",), 1024, 1024, steps=50), 7 * GB, 60.0)
    correction = Correction("study.json", 1.2, has_workspace=True, flops_per_s=1e13, measured=(slow,))
    found = {option.stack: option for option in options(Setup("sdxl"), 24 * GB, correction=correction)}
    assert (found["fp16",].needs_bytes, found["fp16",].seconds) == (7 * GB, 60.0)
    tiny = found["fp16", "tiny-vae"]
    assert not tiny.measured
    assert tiny.seconds == pytest.approx(tiny.estimate.flops / 1e13)
    made = advise(Setup("sdxl"), 24 * GB, correction=correction)
    assert not any("RTX 3090" in text for text in made.assumed)
    assert " s for 2 pictures (" in advise(Setup("sd15", batch=2), 24 * GB).reason


def test_where_nothing_fits_the_smallest_that_would_is_named() -> None:
    with pytest.raises(TooLarge, match="nothing fits sdxl") as caught:
        advise(Setup("sdxl"), GB // 2)
    least = caught.value.least_bytes
    assert least is not None
    assert "with a server that decodes (--server), 883 MB would do" in str(caught.value)
    assert advise(Setup("sdxl"), least).choice.needs_bytes == least
    assert advise(Setup("sdxl"), 883_000_000, link=NEAR).choice.decoder == "remote"


def test_names_that_are_none() -> None:
    with pytest.raises(RequestError, match="unknown pipeline"):
        advise(Setup("sdxx"), GB)
    with pytest.raises(RequestError, match="not a device: saw gpu"):
        advise(Setup("sdxl"), GB, device="gpu")
    with pytest.raises(RequestError, match="unknown quality"):
        advise(Setup("sdxl"), GB, quality="better")  # type: ignore[arg-type] # what a person types


# ------------------------------------------------------------------------------------------ the link


def test_the_link_is_measured_by_decoding(tiny_server: str) -> None:
    link = measure(tiny_server, SDXL)
    assert (link.model, link.itemsize, link.own_weights) == ("sdxl-original", 4, True)
    assert 0 <= link.latency_s < 5
    assert link.bytes_per_s > 0
    assert link.decode_s_per_pixel > 0
    # Latents of 128 KiB there, a picture of 12 MiB in float32 back.
    assert link.bytes_moved(SDXL, 1024 * 1024) == 128 * 2**10 + 12 * 2**20
    assert link.seconds(SDXL, 1024 * 1024) > link.decode_s_per_pixel * 2**20


def test_a_server_that_is_not_there_or_does_not_fit(tiny_server: str) -> None:
    with pytest.raises(ServerUnreachable):
        measure("http://127.0.0.1:9", SDXL)
    with pytest.raises(Mismatch, match="hybridge serve flux"):
        measure(tiny_server, PIPELINES["flux-dev"])


# ------------------------------------------------------------------------------------------ the code


@pytest.fixture
def program(tiny_folder: Path, tiny_server: str) -> Callable[..., str]:
    """One step of 64 pixels on the CPU, with the tiny pipeline in SDXL's place."""
    base = tiny_folder / "base"
    link = replace(NEAR, server=tiny_server)

    def write(*stack: str) -> str:
        setup = Setup("sdxl", stack, 64, 64, steps=1, decode_budget_bytes=64 * 2**20)
        vae_path = str(tiny_folder / "taesd" if "tiny-vae" in stack else base / "vae")
        return lines(setup, link=link, path=str(base), vae_path=vae_path, device="cpu")

    return write


def run(program: str) -> dict[str, Any]:
    """What a person gets who pastes it."""
    names: dict[str, Any] = {}
    with torch.no_grad():
        exec(compile(program, "pasted", "exec"), names)  # noqa: S102 - that is what is tested
    if "connection" in names:
        names["connection"].undo()
    return names


STACKS = [
    ("fp16",),
    ("fp16", "vae-fp16-fix", "exact-vae"),
    ("fp16", "exact-vae", "fp8-storage", "model-offload"),
    ("fp16", "vae-tiling", "group-offload"),
    ("fp16", "tiny-vae", "model-offload"),
    ("fp16", "remote-vae"),
    ("fp16", "remote-vae", "model-offload"),
    ("fp16", "remote-vae", "group-offload"),
]


# SDXL's own pipeline calls it in float16.
@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_the_pasted_code_makes_a_picture(
    stack: tuple[str, ...], program: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(program(*stack))
    with Image.open(tmp_path / "lighthouse.png") as picture:
        assert picture.size == (64, 64)
    assert ("hybridge" in names) == bool({"exact-vae", "remote-vae"} & set(stack))


def test_the_code_names_what_everybody_has(near: dict[int, Advice]) -> None:
    code = near[4].code
    assert '"stabilityai/stable-diffusion-xl-base-1.0", dtype=torch.float16, variant="fp16", vae=None' in code
    assert code.index("enable_layerwise_casting") < code.index("enable_model_cpu_offload()")
    assert 'hybridge.connect(pipe, "http://gpu-box:8000", model="sdxl-original")' in code
    for made in near.values():
        compile(made.code, "pasted", "exec")


# --------------------------------------------------------------------------------- the command line


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(application, ["lab", *arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_advise_says_and_the_code_runs(
    tiny_server: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("advise", "--vram", "1GB", "--ram", "64GB", "--server", tiny_server, "--steps", "1")
    place = ("--path", str(tiny_folder / "base"), "--vae-path", str(tiny_folder / "taesd"), "--device", "cpu")
    said = invoke(*asked, *place)
    assert "assumed:" in said
    assert "was measured" in said
    code = invoke(*asked, *place, "--code")
    monkeypatch.chdir(tmp_path)
    run(code.replace("height=1024, width=1024", "height=64, width=64"))
    assert (tmp_path / "lighthouse.png").exists()


def test_estimate_says_and_gives_json() -> None:
    said = invoke("estimate", "--stack", "fp16+tiny-vae", "--refiner")
    assert "refine" in said
    assert "not in it: the CUDA context" in said
    document = json.loads(invoke("estimate", "--stack", "fp16", "--json"))
    assert round(document["peak_bytes"] / GB, 2) == 11.28
    assert [phase["name"] for phase in document["phases"]] == ["encode prompt", "denoise", "decode"]
    guide = invoke("estimate", "--guide")
    assert "17.38" in guide
    assert "≥" in guide


def test_the_guides_speed_is_what_it_says() -> None:
    whole = next(iter(options(Setup("sdxl"), 24 * GB))).estimate
    assert whole.flops / GUIDE_FLOPS_PER_S == pytest.approx(14, rel=0.01)
