"""The verbs, as somebody types them, with real files.

What leaves a process changed, or depends on a bare one, runs in a process of its own; that costs seconds each.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import HYBRIDGE, SOURCE, hybridge, process
from diffusers import AutoencoderKL
from forks import Forked
from PIL import Image
from safetensors.torch import load_file, save_file

import hybridge as package
from hybridge.engine import Engine, EngineOptions, options, to_pixels
from hybridge.engine.loading import is_path
from hybridge.errors import OutOfMemory
from hybridge.models import CATALOGUE, look_up
from hybridge.scenes import check, read


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


class TestDemo:
    @pytest.fixture(scope="class")
    @classmethod
    def done(cls, tmp_path_factory) -> tuple[str, Path]:
        folder = tmp_path_factory.mktemp("demo") / "pictures"
        # A home that can be written: with diffusers' pipelines comes ONNX Runtime, which keeps an id there.
        home = str(tmp_path_factory.mktemp("home"))
        return process("demo", "-o", folder, HOME=home).stdout, folder

    def test_the_picture_looks_like_the_photograph(self, done) -> None:
        _, folder = done
        photograph, decoded = pixels(folder / "photograph.png"), pixels(folder / "decoded.png")
        assert photograph.shape == decoded.shape == (512, 512, 3)
        assert psnr(photograph, decoded) > 24
        assert pixels(folder / "side-by-side.png").shape == (512, 1032, 3)

    def test_the_picture_shows_what_was_asked_for(self, done) -> None:
        table, folder = done
        assert check(read("a red circle above a blue square at night"), pixels(folder / "picture.png")).is_right
        # The prompt's embeddings are 2 × 40 × 128 float32, and latents 4 × 16 × 16.
        assert re.search(r"read the prompt\s+│ server\s+│\s+\d+ │\s+41,\d+ │", table)
        assert re.search(r"denoise, 20 steps\s+│ this process\s+│\s+– │\s+– │", table)
        assert re.search(r"decode the latents\s+│ server\s+│\s+4,096 │\s+196,608 │\s+\d+ │ as asked", table)

    def test_every_way_agrees_and_is_measured(self, done) -> None:
        table, folder = done
        # The server is a process of its own, which may have another number of threads here.
        assert len(re.findall(r"(identical|up to 1/255 apart)", table)) == 4
        assert len(re.findall(r"│ diffusers │.*identical", table)) == 2
        # The body of an encode request is the PNG, its answer the latents: 4 × 64 × 64 float32.
        assert re.search(r"encode\s+│ hybridge\s+│\s+[\d,]+ │\s+65,536 │\s+\d+ │ 16384 latents", table)
        assert str(folder) in table

    def test_the_picture_is_the_one_made_in_process(self, done) -> None:
        _, folder = done
        engine = Engine.load(look_up("starter"), EngineOptions(device="cpu"))
        image = torch.from_numpy(pixels(folder / "photograph.png").copy())[None]
        expected = to_pixels(engine.decode(engine.encode(image)))[0].numpy()
        # The process above may run with another number of threads, which moves the last bits of floats.
        assert np.abs(pixels(folder / "decoded.png").astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red dragon above a blue teapot", "saw dragon, teapot"),
        ("", "the prompt is empty"),
        ("一个红色恐龙", "saw 恐龙"),
        ("a red circle " * 1000, "saw 13000 characters, expected at most 200"),
    ],
)
def test_demo_refuses_what_the_starter_has_not_learned(prompt: str, words: str, tmp_path) -> None:
    done = hybridge("demo", prompt, "-o", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert ("SHAPE:" in done.stderr) == (len(prompt) < 200)
    assert not (tmp_path / "out").exists()


@contextmanager
def serving(*arguments: object) -> Iterator[str]:
    """The address of a ``hybridge serve`` in a process of its own, ended with Ctrl-C."""
    with Forked(HYBRIDGE, "serve", *arguments, stderr=subprocess.STDOUT) as process:
        seen = ""
        for line in process.stdout:
            seen += line
            if found := re.search(r"serving on (http://\S+)", line):
                break
        else:
            pytest.fail(f"no address in: {seen}")
        try:
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[0]
    assert "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.effect_mandelbrot((128, 96), (-2, -1.2, 0.8, 1.2), 30).convert("RGB").save(path)
    return path


def test_serve_and_every_verb_that_talks_to_it(specs, picture, tmp_path) -> None:
    with serving(f"mine={specs['sd-v1'].source}", "starter", "--port", "0") as address:
        rows = json.loads(hybridge("models", "--server", address, "--json").stdout)
        assert [row["name"] for row in rows] == ["mine", "starter"]
        remote, local = tmp_path / "remote.safetensors", tmp_path / "local.safetensors"
        hybridge("encode", picture, "-o", remote, "--model", "mine", "--server", address)
        hybridge("encode", picture, "-o", local, "--model", f"mine={specs['sd-v1'].source}")
        assert torch.allclose(load_file(remote)["latents"], load_file(local)["latents"], atol=1e-4)
        hybridge("decode", remote, "-o", tmp_path / "remote.png", "--server", address)
        hybridge("decode", local, "-o", tmp_path / "local.webp", "--model", f"mine={specs['sd-v1'].source}")
    one, other = pixels(tmp_path / "remote.png"), pixels(tmp_path / "local.webp")
    assert one.shape == (96, 128, 3)
    assert np.abs(one.astype(int) - other).max() <= 1


def test_a_picture_that_is_resized_is_said_to_be(specs, tmp_path) -> None:
    Image.new("RGB", (101, 67)).save(tmp_path / "odd.png")
    done = hybridge("encode", tmp_path / "odd.png", "--model", f"mine={specs['sd-v1'].source}")
    assert "warning: the picture of 101x67 pixels was resized to 96x64" in done.stderr


@pytest.mark.parametrize("verb", ["decode", "encode"])
def test_what_runs_out_of_memory_is_tried_with_a_smaller_plan(specs, picture, tmp_path, monkeypatch, verb) -> None:
    """As a server does.  The plan of a small picture is patched: one that small has no smaller plan."""
    budgets: list[int | None] = []
    real = getattr(Engine, verb)

    def run(
        engine: Engine, given: torch.Tensor, *, budget_bytes: int | None = None, **about: object
    ) -> torch.Tensor:
        budgets.append(budget_bytes)
        if budget_bytes is None:
            raise OutOfMemory("the device has too little memory")
        return real(engine, given, **about)

    monkeypatch.setattr(Engine, verb, run)
    monkeypatch.setattr(Engine, "smaller_budget", lambda *_, peak_bytes: peak_bytes // 2)
    latents = tmp_path / "latents.npy"
    np.save(latents, np.zeros((1, 4, 8, 8), np.float32))
    source = latents if verb == "decode" else picture
    hybridge(verb, source, "-o", tmp_path / f"out{latents.suffix if verb == 'encode' else '.png'}",
             "--model", f"mine={specs['sd-v1'].source}", "--device", "cpu")  # fmt: skip
    assert budgets[0] is None
    assert budgets[1] is not None
    assert budgets[1] > 0


def test_scaled_latents_know_what_they_are(specs, picture, tmp_path) -> None:
    model = f"mine={specs['sdxl'].source}"
    plain, scaled = tmp_path / "plain.safetensors", tmp_path / "scaled.safetensors"
    hybridge("encode", picture, "-o", plain, "--model", model)
    hybridge("encode", picture, "-o", scaled, "--model", model, "--scaled")
    assert torch.allclose(load_file(plain)["latents"] * 0.13025, load_file(scaled)["latents"], atol=1e-5)
    for path in (plain, scaled):
        hybridge("decode", path, "--model", model)
    assert np.abs(pixels(plain.with_suffix(".png")).astype(int) - pixels(scaled.with_suffix(".png"))).max() <= 1


def test_files_of_other_programs_and_batches(specs, tmp_path) -> None:
    """The pictures are those of diffusers' own VAE; an old file of ComfyUI's has another scaling than the model."""
    latents = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    vae = AutoencoderKL.from_pretrained(specs["sdxl"].source)
    with torch.no_grad():
        expected = to_pixels(vae.decode(latents).sample).numpy().astype(int)
    marker = {"latent_format_version_0": torch.tensor([])}
    save_file({"latent_tensor": latents, **marker}, tmp_path / "new.latent")
    save_file({"latent_tensor": latents * 0.18215}, tmp_path / "old.latent")
    torch.save({"latents": latents.double() * 0.13025}, tmp_path / "plain.pt")
    ours = {"model": "sd-v1", "space": "vae"}
    save_file({"latents": latents}, tmp_path / "ours.safetensors", ours)
    for name, note in (
        ("new.latent", ""),
        ("old.latent", "divided by 0.18215"),
        ("plain.pt", "taken for"),
        ("ours.safetensors", "latents of sd-v1 by its own account, decoded with mine="),
    ):
        done = hybridge("decode", tmp_path / name, "--model", f"mine={specs['sdxl'].source}")
        assert note in done.stderr
        for index in range(2):
            found = pixels(tmp_path / f"{Path(name).stem}-{index}.png").astype(int)
            assert np.abs(found - expected[index]).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "float64"), "setting dtype is wrong"),
        (("--port", "99999"), "setting port is wrong"),
        (("--host", ""), "setting host is wrong"),
        (("--keys", ""), "setting keys is wrong: expected a path"),
        (("--spool", ""), "setting spool is wrong: expected a path"),
        (("--default-model", "flux", "--port", "0"), "the default model flux is not among starter"),
        (("starter", "starter"), "two models of one name"),
        (("--text-quantisation", "torchao-int9"), "no quantisation is called torchao-int9"),
        (("--text-quantisation", "flux=quanto-int8"), "the quantised model flux is not among starter"),
        (
            ("--text-quantisation", "quanto-int8", "--text-quantisation", "quanto-fp8"),
            "two quantisations for one model",
        ),
        (("--spill", "/no/such/folder"), "a folder that can be written to"),
        (("--spill", ".", "--exactness", "bitwise"), "which --exactness bitwise forbids"),
    ],
)
def test_serve_says_which_setting_is_wrong(arguments, message) -> None:
    done = hybridge("serve", *arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sdxll",), "Try: sdxl"),
        (("x=/no/such/folder",), "no folder for x"),
        (("--text-quantisation", "quanto-int8"), "pip install optimum-quanto"),
        (("--device", "nonsense", "--port", "0"), "nonsense"),
    ],
)
def test_serve_says_what_is_wrong_in_one_line(arguments, message) -> None:
    done = process("serve", *arguments, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_on_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = process("serve", "--port", taken.getsockname()[1], check=False)
    assert done.returncode == 1
    assert "cannot listen on" in done.stderr


def test_a_misspelt_variable() -> None:
    done = process("serve", "--port", "0", check=False, HYBRIDGE_QUEUE_LIMITS="3", HYBRIDGE_KEY="for other verbs")
    assert "Try: HYBRIDGE_QUEUE_LIMIT" in done.stderr


class TestDecodeRefuses:
    def test_what_is_no_safetensors_file(self, picture) -> None:
        done = hybridge("decode", picture, check=False)
        assert "cannot be read as tensors" in done.stderr
        assert "expected safetensors" in done.stderr

    def test_several_tensors_without_latents(self, tmp_path) -> None:
        save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
        assert "no tensor `latents`" in hybridge("decode", tmp_path / "two.safetensors", check=False).stderr

    def test_a_trainers_cache_that_may_be_scaled_or_not(self, tmp_path) -> None:
        beside = {"crop_ltrb": np.zeros(4), "original_size": np.zeros(2)}
        np.savez(tmp_path / "x.npz", latents=np.zeros((16, 2, 2), np.float32), **beside)
        assert "--no-scaled for" in hybridge("decode", tmp_path / "x.npz", check=False).stderr

    def test_latents_with_nan(self, tmp_path) -> None:
        np.save(tmp_path / "x.npy", np.full((1, 4, 2, 2), np.nan, np.float32))
        assert "nan" in hybridge("decode", tmp_path / "x.npy", check=False).stderr

    def test_an_unknown_picture_format(self, tmp_path) -> None:
        save_file({"latents": torch.zeros(1, 4, 2, 2)}, tmp_path / "x.safetensors")
        done = hybridge("decode", tmp_path / "x.safetensors", "-o", tmp_path / "x.bmp", check=False)
        assert ".png" in done.stderr

    def test_a_server_that_is_not_there(self, tmp_path) -> None:
        save_file({"latents": torch.zeros(1, 4, 2, 2)}, tmp_path / "x.safetensors")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        done = hybridge("decode", tmp_path / "x.safetensors", "--server", f"http://127.0.0.1:{port}", check=False)
        assert done.returncode == 1
        assert f"127.0.0.1:{port}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_there(specs, picture) -> None:
    model = f"mine={specs['sd-v1'].source}"
    done = hybridge("encode", picture, "-o", "/nonexistent/x.safetensors", "--model", model, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_models_lists_the_catalogue() -> None:
    rows = {row["name"]: row for row in json.loads(hybridge("models", "--json").stdout)}
    assert rows["starter"]["is_here"]
    assert rows["flux"]["source"] == "black-forest-labs/FLUX.1-schnell/vae"
    assert "sdxl-original" in hybridge("models").stdout


def test_the_end_does_not_look_for_garbage() -> None:
    """Behind torch that took seconds.  In a process of its own, because it is about how one ends."""
    code = "import atexit, gc; atexit.register(lambda: print(len(gc.get_objects())))\nimport torch\n"
    command = [sys.executable, "-c", code + "from hybridge.cli import main; main()", "--version"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": SOURCE}, timeout=240, check=True
    )
    assert int(done.stdout.split()[-1]) < 1000


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/never"),)  # noqa: S108 - it is never made


class TestConvert:
    """Starts the process that reads the pickle."""

    def test_a_checkpoint_becomes_weights_that_are_served(self, tmp_path) -> None:
        halves = {"first.weight": torch.randn(3, 2).half(), "second.weight": torch.randn(2).bfloat16()}
        torch.save({"state_dict": halves | {"tied": halves["first.weight"]}, "epoch": 3}, tmp_path / "x.ckpt")
        done = hybridge("convert", tmp_path / "x.ckpt", tmp_path / "x.safetensors")
        assert "3 tensors" in done.stdout
        found = load_file(tmp_path / "x.safetensors")
        assert torch.equal(found.pop("tied"), halves["first.weight"])
        assert {name: part.dtype for name, part in found.items()} == {k: v.dtype for k, v in halves.items()}
        assert all(torch.equal(part, halves[name]) for name, part in found.items())
        assert (
            "is there already"
            in hybridge("convert", tmp_path / "x.ckpt", tmp_path / "x.safetensors", check=False).stderr
        )

    def test_what_is_not_tensors(self, tmp_path) -> None:
        torch.save({"state_dict": {"evil": Evil()}}, tmp_path / "x.ckpt")
        done = hybridge("convert", tmp_path / "x.ckpt", tmp_path / "x.safetensors", check=False)
        assert "never loaded" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
        done = hybridge("convert", tmp_path / "x.ckpt", tmp_path / "x.ckpt2", check=False)
        assert "expected FILE.safetensors" in done.stderr


def test_version() -> None:
    told = f"hybridge {package.__version__}\n"
    assert hybridge("--version").stdout == told
    command = [sys.executable, "-m", "hybridge", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == told


class TestPlan:
    """Planning needs no weights: in an environment without a cache and without a network."""

    def test_a_full_size_model_at_2048(self) -> None:
        made = json.loads(process("plan", "sdxl", "--size", "2048", "--budget", "8GiB", "--json").stdout)
        assert (made["model"], made["mode"]) == ("sdxl", "strips")
        assert made["peak_bytes"] <= 8 * 2**30
        # Against 1024²: convolutions are four times as much, attention over all latents sixteen times.
        half = json.loads(hybridge("plan", "sdxl", "--size", "1024", "--budget", "8GiB", "--json").stdout)
        assert half["mode"] == "strips"
        attention = 4 * (128 * 128) ** 2 * 512
        assert made["flops"] == pytest.approx(4 * (half["flops"] - attention) + 16 * attention, rel=1e-3)

    def test_a_video(self) -> None:
        size = "--size", "480x832", "--frames", "81", "--dtype", "bfloat16", "--json"
        for budget, mode in (("4GiB", "frames"), ("1200MiB", "rows")):
            made = json.loads(hybridge("plan", "wan-2.1", *size, "--budget", budget).stdout)
            assert (made["mode"], made["frames"]) == (mode, 21)
        done = hybridge("plan", "wan-2.1", "--frames", "80", check=False)
        assert "4·n + 1 frames" in done.stderr
        done = hybridge("plan", "kandinsky6-sr", check=False)
        assert "kandinsky6-sr has no plan: its VAE runs as its own class does it" in done.stderr

    def test_every_row_is_known_without_a_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [row for row in CATALOGUE.values() if row.architecture is None and not is_path(row.source)]
        assert all(row.shape is not None for row in rows)
        monkeypatch.setattr("hybridge.engine.loading._locate", None)
        for row in (*rows, look_up("sana")):
            frames = ("--frames", row.frames.frames_out(2)) if row.frames.is_video else ()
            made = json.loads(hybridge("plan", row.name, "--size", "256", *frames, "--json").stdout)
            assert made["flops"] > 0

    def test_a_budget_that_nothing_fits_names_the_smallest_that_would(self) -> None:
        done = hybridge("plan", "flux", "--size", "1024", "--budget", "1MiB", check=False)
        assert done.returncode == 1
        smallest = re.search(r"expected at least ([\d.]+ .iB)", done.stderr)
        assert smallest is not None
        hybridge("plan", "flux", "--size", "1024", "--budget", smallest[1])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--task", "paint"), "decode or encode"),
            (("--budget", "0"), "not an amount of memory"),
            (("--size", "large"), "768x1024"),
        ],
    )
    def test_what_cannot_be_planned(self, arguments, message) -> None:
        done = hybridge("plan", "sdxl", *arguments, check=False)
        assert done.returncode == 1
        assert message in done.stderr


def test_the_help_of_serve_says_what_memory_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = " ".join(re.sub(r"[│┃|]", " ", hybridge("serve", "--help").stdout).split())
    told = re.search(r"--memory <str> .*?\[default: \((.*?)\)\]", shown)
    assert told is not None
    assert told[1].startswith("on a CPU 3/4 of what a container or ulimit grants")
    monkeypatch.setattr(options, "granted_bytes", lambda: 4000)
    assert options.granted_memory("cpu") == 3000
