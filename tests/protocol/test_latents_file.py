"""Latents as other programs keep them in files: each form gives the picture that diffusers' own VAE gives.

The files are written as those programs write them.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from latents_files import FORMS, PLAIN, SIDES, Z, write_kohya
from safetensors.torch import save_file

from hybridge.errors import RequestError, TooLarge
from hybridge.models import look_up
from hybridge.protocol import Scaling, read_latents
from hybridge.protocol.torch import to_torch

VAE, PIPELINE = Scaling(), Scaling("model")


@pytest.fixture(scope="module")
def starter() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(look_up("starter").source, torch_dtype=torch.float32).eval()


def picture(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        decoded: torch.Tensor = vae.decode(latents).sample
    return decoded


@pytest.mark.parametrize("form", FORMS)
def test_the_picture_of_a_programs_file(form: str, starter: AutoencoderKL, tmp_path: Path) -> None:
    name, write = FORMS[form]
    write(tmp_path / name)
    read = read_latents(tmp_path / name)
    assert (read.scaling, read.is_known) == (VAE, True)
    assert torch.allclose(picture(starter, to_torch(read.tensor)), picture(starter, Z), atol=1e-4)


@pytest.mark.parametrize("form", PLAIN)
def test_a_tensor_alone(form: str, tmp_path: Path) -> None:
    name, write = PLAIN[form]
    write(tmp_path / name)
    read = read_latents(tmp_path / name)
    assert (read.scaling, read.is_known) == (None, False)
    assert torch.equal(to_torch(read.tensor), Z)
    assert ("float64 was rounded to float32" in read.notes) == ("float64" in form)


def test_flux_caches_of_sd_scripts_are_scaled_and_sd3s_are_not(tmp_path: Path) -> None:
    cases = (("a_flux.npz", PIPELINE, "flux"), ("a_sd3.npz", VAE, "sd3"), ("a.npz", None, None))
    for name, scaling, model in cases:
        np.savez(tmp_path / name, latents=np.zeros((16, 8, 6), np.float32), **SIDES)
        read = read_latents(tmp_path / name)
        assert (read.scaling, read.model, read.tensor.shape) == (scaling, model, (1, 16, 8, 6))
        assert read.is_known


@pytest.mark.parametrize("shape", [(16, 1, 8, 6), (16, 8, 6)])
def test_musubi_tuner(shape: tuple[int, ...], tmp_path: Path) -> None:
    latents = torch.randn(shape).to(torch.bfloat16)
    for architecture, scaling in (("flux_kontext", PIPELINE), ("z_image", None)):
        tensors = {"latents_1x8x6_bfloat16": latents, "latents_control_1x8x6_bfloat16": latents.clone()}
        save_file(tensors, tmp_path / "x.safetensors", {"architecture": architecture})
        read = read_latents(tmp_path / "x.safetensors")
        assert (read.scaling, read.is_known) == (scaling, True)
        assert torch.equal(to_torch(read.tensor), latents.reshape(1, 16, 8, 6))


def test_one_of_several(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, latents_8x6=Z[0].numpy(), crop_ltrb_8x6=SIDES["crop_ltrb"], latents_6x8=Z[0].mT.numpy())
    with pytest.raises(RequestError, match=r"several pictures: saw latents_8x6 .*latents_6x8 .*--tensor latents"):
        read_latents(path)
    assert torch.equal(to_torch(read_latents(path, "latents_8x6").tensor), Z)
    with pytest.raises(RequestError, match=r"no tensor `nothing`.*saw latents_8x6 \[4, 8, 6\]"):
        read_latents(path, "nothing")


def test_flipped_latents_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    write_kohya(tmp_path / "x.npz")
    assert torch.equal(to_torch(read_latents(tmp_path / "x.npz", "latents_flipped").tensor), Z.flip(-1))


def header(path: Path, entries: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (1, 4, 2, 2), offsets: object = (0, 64)) -> dict[str, object]:
    return {"latents": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("entries", "data", "message"),
    [
        (b"{]", b"", "no JSON header"),
        (b"[" * 100_000, b"", "no JSON header"),
        ([], b"", "no object"),
        (entry(shape=(1, 4, 2, 3)), bytes(64), "do not belong together"),
        (entry(shape=(-1, -4, 4, 4)), bytes(64), "do not belong together"),
        (entry(shape=(1, 4, 2, True)), bytes(64), "do not belong together"),
        (entry(offsets=(64, 0)), bytes(64), "do not belong together"),
        (entry(offsets=None), bytes(64), "do not belong together"),
        ({"latents": 3}, bytes(64), "do not belong together"),
        (entry(), bytes(63), "cut short"),
        (entry("I32"), bytes(64), "holds no floats: saw I32"),
        (entry("F8_E4M3", offsets=(0, 16)), bytes(16), "holds no floats: saw F8_E4M3"),
        (entry(shape=(), offsets=(0, 4)), bytes(4), "impossible shape"),
        ({}, b"", "no tensor"),
    ],
)
def test_safetensors_that_lie(entries: Any, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        read_latents(header(tmp_path / "x.safetensors", entries, data))


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = header(tmp_path / "x.safetensors", b"{}", length=2**40)
    with pytest.raises(RequestError, match="bytes beginning with"):
        read_latents(path)
    with path.open("wb") as sparse:  # its size is real, nothing is written for it
        sparse.write(struct.pack("<Q", 2**30))
        sparse.truncate(2**31)
    with pytest.raises(RequestError, match="a header of 1073741824 bytes"):
        read_latents(path)
    huge = entry(shape=(1, 4, 2**15, 2**14), offsets=(0, 2**33))
    with header(path, huge).open("r+b") as sparse:
        sparse.truncate(2**33 + 4096)
    with pytest.raises(TooLarge, match="8589934592 bytes"):
        read_latents(path)


def array_header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (53 - len(text) % 64 + 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_zip_bombs(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latents.npy", array_header("(1, 4, 65536, 65536)"))
    with pytest.raises(RequestError, match="of 0 bytes, described as"):
        read_latents(path)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("latents.npy", "w", force_zip64=True) as file,
    ):
        file.write(array_header("(1, 4, 8192, 9000)"))
        zeros = bytes(2**20)
        for _ in range(4 * 8192 * 9000 * 4 // 2**20):
            file.write(zeros)
    with pytest.raises(TooLarge, match="1179648000 bytes"):
        read_latents(path)


def test_what_is_no_array_of_floats(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(RequestError, match="NumPy refuses"):
        read_latents(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", latents=np.array([{}], object))
    with pytest.raises(RequestError, match="holds no floats: saw object"):
        read_latents(tmp_path / "x.npz")
    (tmp_path / "x.npy").write_bytes(array_header("(1, 4, 65536, 65536)"))
    with pytest.raises(RequestError, match="NumPy refuses"):
        read_latents(tmp_path / "x.npy")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/never"),))  # noqa: S108 - it is never made


def test_a_header_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"latents": torch.zeros(1, 16, 3, 8, 8)}, path, {"model": "wan-2.1", "space": "vae"})
    assert path.read_bytes()[0] == 0x80
    read = read_latents(path)
    assert (read.model, read.scaling) == ("wan-2.1", Scaling())


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    torch.save({"latents": Z, "evil": Evil()}, tmp_path / "x.pt")
    with pytest.raises(RequestError, match="pickled objects of other kinds are never loaded"):
        read_latents(tmp_path / "x.pt")


def test_a_small_storage_that_claims_to_be_large(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1, 4, 2**15, 2**14), tmp_path / "x.pt")
    with pytest.raises(TooLarge, match="8589934592 bytes"):
        read_latents(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"", "0 bytes"),
        (b"PK\x03\x04 but no archive", "not a zip file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), r"expected safetensors .*\.npz"),
    ],
)
def test_what_is_no_file_of_tensors(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.latent").write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_latents(tmp_path / "x.latent")


@pytest.mark.parametrize("form", ["x.safetensors", "x.npz", "x.npy", "x.pt"])
def test_damage_is_an_error_or_harmless(form: str, tmp_path: Path) -> None:
    path, names = tmp_path / form, dict(PLAIN.values())
    names["x.npz"] = lambda path: np.savez_compressed(path, latents=Z.numpy())
    names[form](path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged[: random.integers(1, len(whole) + 1)] if random.random() < 0.3 else damaged)
        with contextlib.suppress(RequestError):
            assert read_latents(path).tensor.nbytes <= len(whole)
