"""Every verb: its help, the worst that somebody can type, and what it does when all is well.

Verbs whose success takes a server, a benchmark or a process of its own have that test elsewhere; the table names
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import hybridge
from PIL import Image
from safetensors.torch import save_file
from typer.core import TyperGroup
from typer.main import get_command

from hybridge.cli.application import application

pytestmark = pytest.mark.usefixtures("studies_share_a_process")

TESTS = Path(__file__).parents[1]

#: For each verb the arguments that cannot work, and words of the error that they get.
WRONG = {
    "demo": (["-o", "file/pictures"], "Not a directory: 'file/pictures'"),
    "serve": (["sdxl", "--default-model", "flux"], "the default model flux is not among sdxl"),
    "models": (["--server", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
    "encode": (["file"], "the picture file cannot be read"),
    "decode": (["file"], "file cannot be read as tensors"),
    "verify": (["file", "--latents", "latents.safetensors"], "file cannot be read as a picture"),
    "doctor": (["no.pe"], "no.pe is neither a file, a folder, an address nor a profile"),
    "prompt": (
        ["-i", "prompts.txt", "--model", "sd-v1", "-o", "out", "--server", "http://127.0.0.1:1"],
        "http://127.0.0.1:1 cannot be reached",
    ),
    "plan": (["nope"], "unknown model: saw 'nope', expected one of starter"),
    "convert": (["file", "out.safetensors"], "file cannot be read as tensors"),
    "bench vae": (["nope"], "unknown model: saw 'nope', expected one of starter"),
    "bench serve": (["--model", "nope"], "unknown model: saw 'nope', expected one of starter"),
    "keys add": (["file/keys", "me"], "the key file cannot be written: saw file/keys: Not a directory"),
    "keys list": (["none"], "Try: hybridge keys add none NAME"),
    "keys remove": (["file", "me"], "line 1 of file is no key"),
    "profiles list": ([], "file has keys that others on this machine may read"),
    "profiles remove": (["me"], "file has keys that others on this machine may read"),
    "pair": ([], "no server that pairs runs here"),
    "join": (["hybridge://box:8000"], "this pairing link is not whole"),
    "find": (["--update", "--seconds", "0.1"], "file has keys that others on this machine may read"),
    "lab simulate": ([], "one of --record and --job is needed"),
    "lab list": (["nope"], "no such pipeline: saw nope"),
    "lab run": (["nope"], "no such pipeline: saw nope"),
    "lab report": (["file"], "file is not JSON"),
    "lab estimate": (["--pipeline", "nope"], "unknown pipeline: saw nope, expected sd15"),
    "lab advise": (["--pipeline", "nope", "--vram", "8"], "unknown pipeline: saw nope, expected sd15"),
}

#: For each verb what works, and words of what it prints; or the file and the test that has it.
RIGHT: dict[str, tuple[list[str], str] | tuple[str, str]] = {
    "demo": ("cli/test_cli.py", "class TestDemo"),
    "serve": ("cli/test_cli.py", "def test_serve_and_every_verb_that_talks_to_it"),
    "models": ([], "sdxl-original"),
    "encode": (["picture.png", "-o", "encoded.safetensors"], "encoded.safetensors: float32 [1, 4, 8, 8]"),
    "decode": (["latents.safetensors", "-o", "decoded.png"], "decoded.png: "),
    "verify": ("cli/test_verify.py", "def test_a_picture_of_these_latents_is_equal"),
    "doctor": (["latents.safetensors"], "tensor: float32 [1, 4, 2, 2]"),
    "prompt": ("cli/test_prompt.py", "def test_every_prompt_once_and_the_empty_one"),
    "plan": (["starter", "--size", "512"], "decode"),
    "convert": (["latents.pt", "converted.safetensors"], "converted.safetensors"),
    "bench vae": ("lab/vae_bench/test_bench.py", '"bench", "vae"'),
    "bench serve": ("lab/serve_bench/test_bench.py", '"bench", "serve"'),
    "keys add": ("cli/test_keys.py", "def test_add_list_remove"),
    "keys list": (["keys"], "me"),
    "keys remove": ("cli/test_keys.py", "def test_add_list_remove"),
    "profiles list": ("cli/test_pair.py", 'hybridge("profiles", "list")'),
    "profiles remove": ("cli/test_pair.py", 'hybridge("profiles", "remove", "desktop")'),
    "pair": ("cli/test_pair.py", 'hybridge("pair")'),
    "join": ("cli/test_pair.py", 'hybridge("join", '),
    "find": ("client/test_discovery.py", "def test_an_announcement_finds_the_profile_and_its_new_address"),
    "lab simulate": ("lab/test_simulator.py", '"lab", "simulate"'),
    "lab list": ([], "tome"),
    "lab run": ("lab/studies/test_run.py", '"lab", "run"'),
    "lab report": ("lab/report/test_page.py", '"lab", "report"'),
    "lab estimate": (["--pipeline", "sd15"], "sd15, fp16, 1 × 512×512, 50 steps"),
    "lab advise": (["--pipeline", "sd15", "--vram", "8"], "GB at most"),
}


def verbs_of(group: TyperGroup, *before: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from verbs_of(command, *before, name)
        else:
            yield " ".join((*before, name))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the tables name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDGE_PROFILES", "file")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    Path("file").write_text("neither picture nor tensor, key or record\n")
    Path("prompts.txt").write_text("a lighthouse\n")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("picture.png")
    save_file({"latents": torch.zeros(1, 4, 2, 2)}, "latents.safetensors")
    torch.save({"latents": torch.zeros(1, 4, 2, 2)}, "latents.pt")
    hybridge("keys", "add", "keys", "me")
    return tmp_path


def test_the_tables_name_every_verb() -> None:
    group: Any = get_command(application)
    assert sorted(verbs_of(group)) == sorted(WRONG) == sorted(RIGHT)


@pytest.mark.parametrize("verb", WRONG)
def test_the_help_says_how_it_is_used(verb: str) -> None:
    shown = hybridge(*verb.split(), "--help").stdout
    assert f" {verb} [OPTIONS]" in shown.partition("Usage:")[2]
    assert "--help" in shown


@pytest.mark.parametrize("verb", WRONG)
def test_the_worst_error_is_one_sentence(verb: str) -> None:
    arguments, message = WRONG[verb]
    done = hybridge(*verb.split(), *arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hybridge: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", [verb for verb, (first, _) in RIGHT.items() if isinstance(first, list)])
def test_success(verb: str) -> None:
    arguments, words = RIGHT[verb]
    assert words in hybridge(*verb.split(), *arguments).stdout


def test_a_file_that_names_no_model_is_said_to_be_decoded_with_the_starter() -> None:
    assert "decoded with starter, because it names no model" in hybridge("decode", "latents.safetensors").stderr


@pytest.mark.parametrize("verb", [verb for verb, (first, _) in RIGHT.items() if isinstance(first, str)])
def test_success_is_tested_elsewhere(verb: str) -> None:
    file, words = RIGHT[verb]
    assert words in (TESTS / str(file)).read_text(encoding="utf-8")
