"""A model's folder with a wrong config.json or wrong weights: one sentence each, before memory is taken."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridge.engine import Engine, EngineOptions, loading, resolve
from hybridge.errors import ModelUnavailable, OutOfMemory
from hybridge.models import ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(specs: dict[str, ModelSpec], tmp_path: Path) -> Path:
    """A copy of a small KL model."""
    return Path(shutil.copytree(specs["sdxl"].source, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(ModelUnavailable) as refusal:
        Engine.load(resolve(f"mine={folder}"), EngineOptions(device="cpu"))
    told = str(refusal.value)
    assert str(folder) in told
    assert str(folder) not in str(refusal.value.for_strangers())
    assert "mine" in str(refusal.value.for_strangers())
    assert "\n" not in told
    assert len(told) < 600
    return told


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("norm_num_groups", 0, "saw norm_num_groups 0, expected a whole number from 1"),
        ("norm_num_groups", 3, r"saw norm_num_groups 3, expected a divisor of each of block_out_channels \[8"),
        ("latent_channels", "4", "saw latent_channels '4', expected a whole number"),
        ("latent_channels", -4, "saw latent_channels -4"),
        ("latent_channels", True, "saw latent_channels True"),
        ("latent_channels", 10**9, "saw latent_channels 1000000000"),
        ("latent_channels", 4.0, r"saw latent_channels 4\.0"),
        ("in_channels", 10**400, "saw in_channels a number of 401 digits"),
        ("layers_per_block", 10**6, "saw layers_per_block 1000000, expected a whole number from 1 to 32"),
        ("block_out_channels", [8] * 10**5, "saw block_out_channels"),
        ("block_out_channels", [8, 8, 16, 10**9], "expected a list of 1 to 8 whole numbers"),
        ("block_out_channels", {"a": [[]]}, "saw block_out_channels"),
        ("block_out_channels", [], r"saw block_out_channels \[\]"),
        ("down_block_types", ["DownEncoderBlock2D"], "saw 1 down_block_types, expected 4"),
        ("down_block_types", ["Nonsense"] * 4, "no module can be made of the config.json"),
        ("act_fn", "nonsense", "no module can be made of the config.json"),
        ("force_upcast", "yes", "saw force_upcast 'yes', expected true or false"),
        ("scaling_factor", 0, "saw scaling_factor 0, expected a number above 0"),
        ("scaling_factor", "0.18", r"saw scaling_factor '0\.18'"),
        ("scaling_factor", float("nan"), "NaN is no number of JSON"),
        ("shift_factor", float("inf"), "Infinity is no number of JSON"),
        ("shift_factor", [0], r"saw shift_factor \[0\]"),
        ("latents_mean", [0.0, 1.0], r"saw latents_mean \[0\.0, 1\.0\], expected 4 numbers"),
        ("latents_mean", [0, 0, 0, "0"], "saw latents_mean"),
        ("latents_std", [1, 1, 1, 0], "saw latents_std .*, expected 4 numbers above 0"),
        (
            "_class_name",
            "UNet2DModel",
            "saw _class_name 'UNet2DModel', expected AutoencoderKL, ",
        ),
        ("_class_name", "os.system", "saw _class_name 'os.system'"),
        ("_class_name", ["AutoencoderKL"], "is not a VAE that hybridge runs"),
    ],
)
def test_a_value_that_cannot_be(folder: Path, key: str, value: Any, told: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    said = refused(folder)
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "holds no object: saw list"),
        (b'{"scaling_factor": 1e999}', "beyond what a float holds"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_config_that_is_no_object(folder: Path, text: bytes, told: str) -> None:
    (folder / "config.json").write_bytes(text)
    assert told in refused(folder)


def test_a_config_of_a_gibibyte_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**30)  # takes no room
    assert "saw 1073741824 bytes, expected at most 1048576" in refused(folder)


def test_a_config_with_a_byte_order_mark_is_read(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert loading.load(resolve(f"mine={folder}"), torch.float32, CPU) is not None


def written(header: object, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


LIE = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 334643268\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:1000], "a header of"),
        (lambda data: data[:-100], "bytes of numbers, where its header describes"),
        (lambda data: data + b"0" * 8, "bytes of numbers, where its header describes"),
        (lambda _: b"", "a file of 0 bytes"),
        (lambda _: POINTER, "a pointer of Git LFS"),
        (lambda _: struct.pack("<Q", 2**62), "a header of 4611686018427387904 bytes in a file of 8"),
        (lambda _: written(b"not JSON"), "a header that is not JSON"),
        (lambda _: written([1]), "a header that is no object"),
        (lambda _: written({"a": LIE}, b"0000"), "a described as"),
        (lambda _: written({"a": {**LIE, "shape": [-1, -1]}}, b"0000"), "a described as"),
        (lambda _: written({"a": {**LIE, "shape": ["1"]}}, b"0000"), "a described as"),
        (lambda _: written({"a": {**LIE, "dtype": "I64"}}, b"0000"), "a described as"),
        (lambda _: written({"a": 3}, b"0000"), "a described as"),
        (lambda _: written({"a": {**LIE, "shape": [1]}}, b"0000"), "incomplete"),
    ],
)
def test_damaged_weights(folder: Path, change: Callable[[bytes], bytes], told: str) -> None:
    path = folder / FILE
    path.write_bytes(change(path.read_bytes()))
    assert told in refused(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    weights = load_file(folder / FILE)
    weights["decoder.conv_out.bias"] = torch.zeros(5)
    save_file(weights, folder / FILE)
    assert "saw decoder.conv_out.bias of shape [5], expected [3]" in refused(folder)


def test_variants_beside_the_plain_file_are_not_counted(specs, folder: Path) -> None:
    spec = replace(specs["sdxl"], source=str(folder))
    before = Engine.expected_bytes(spec)
    shutil.copy(folder / FILE, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert Engine.expected_bytes(spec) == before
    (folder / FILE).unlink()
    assert Engine.expected_bytes(spec) == before  # the variant alone is taken
    other = folder / "diffusion_pytorch_model.non_ema.safetensors"
    (folder / "diffusion_pytorch_model.fp16.safetensors").rename(other)
    assert f"only {other.name}" in refused(folder)
    other.unlink()
    assert "saw no weights" in refused(folder)


def test_weights_in_several_files(folder: Path) -> None:
    weights = load_file(folder / FILE)
    names = list(weights)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name].clone() for name in part}, folder / file)
    (folder / FILE).unlink()
    index = folder / f"{FILE}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in files.items() for name in part}}))
    spec = resolve(f"mine={folder}")
    assert loading.weights_bytes(spec, torch.float32) == sum(part.nbytes for part in weights.values())
    module = loading.load(spec, torch.float32, CPU)
    assert all(torch.equal(module.state_dict()[name], part) for name, part in weights.items())
    (folder / "two.safetensors").unlink()
    assert "saw no two.safetensors, and 0 more of 2 files missing" in refused(folder)
    for wrong in ('{"weight_map": {"a": "../one.safetensors"}}', '{"weight_map": {}}', "[]", "{", "[" * 100_000):
        index.write_text(wrong)
        assert "the index of mine's weights is damaged" in refused(folder)


def test_a_pipe_in_place_of_a_file_holds_nobody_up(folder: Path) -> None:
    (folder / FILE).unlink()
    os.mkfifo(folder / FILE)
    assert "no safetensors weights" in refused(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "no config.json" in refused(folder)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_told_as_that(specs, monkeypatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loading, "fill", fail)
    needed = loading.weights_bytes(specs["sdxl"], torch.float32)
    with pytest.raises(OutOfMemory, match=rf"no memory on cpu for the weights of sdxl: .*expected {needed} bytes"):
        loading.load(specs["sdxl"], torch.float32, CPU)


def test_strangers_are_told_the_model_and_the_kind_of_failure_and_no_path(specs, folder: Path, caplog) -> None:
    spec = replace(specs["sdxl"], source=str(folder))
    backend = LocalBackend({}, cold=[spec], options=EngineOptions(device="cpu"))
    (folder / FILE).write_bytes(POINTER)
    with running(create_app(backend)) as address:
        query = {"shape": [1, 4, 4, 4], "dtype": "float32"}
        headers = {"content-type": "tensor/binary"}
        url = f"{address}/v1/sdxl/decode"
        answer = httpx.post(url, params=query, content=bytes(256), headers=headers, timeout=60)
        shown = httpx.get(f"{address}/v1/models/sdxl")
    assert answer.status_code == 503
    assert "the weights of sdxl are damaged" in answer.json()["error"]
    assert "the weights of sdxl are damaged" in shown.json()["failure"]
    assert str(folder) not in answer.text + shown.text
    assert str(folder) in caplog.text


def test_an_error_with_a_path_can_be_copied() -> None:
    copied = copy.copy(ModelUnavailable("what", saw="saw", where="/folder"))
    assert (str(copied), copied.where) == ("what: saw saw (in /folder)", "/folder")
