"""``hybridge verify`` and the receipts that it reads."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from commands import hybridge
from latent_samples import pipeline_latents
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from hybridge.models.catalogue import STARTER
from hybridge.protocol.receipt import Receipt, find_receipt

VAE = STARTER / "vae"
FORMATS = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file(
        {"latents": pipeline_latents()["photograph"]}, "z.safetensors", {"model": "starter", "space": "pipeline"}
    )
    return tmp_path


def report(*arguments: object) -> dict[str, Any]:
    done = hybridge("verify", *arguments, "--latents", "z.safetensors", "--json", check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if document["ok"] else 1)
    return document


def codes(found: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in found["findings"]]


def receipt_in(data: bytes) -> Receipt | None:
    with Image.open(io.BytesIO(data)) as file:
        file.load()
        return find_receipt(file.info.get("hybridge"), file.info.get("xmp"))


def test_a_picture_of_these_latents_is_equal() -> None:
    hybridge("decode", "z.safetensors", "-o", "picture.png", "--metadata")
    found = report("picture.png")
    assert found["facts"]["verdict"] == "equal"
    assert found["findings"] == []
    weights = hashlib.sha256((VAE / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert f"weights=sha256:{weights}" in found["facts"]["receipt"]
    assert "exactness=rounding" in found["facts"]["receipt"]


def test_a_picture_without_a_receipt_is_compared_too() -> None:
    hybridge("decode", "z.safetensors", "-o", "picture.png")
    pixels = np.asarray(Image.open("picture.png")).astype(int)
    assert report("picture.png")["facts"]["receipt"] == "none in the picture"
    Image.fromarray((pixels + 1).clip(0, 255).astype(np.uint8)).save("brighter.png")
    assert report("brighter.png")["facts"]["verdict"] == "within 1 level"
    assert codes(report("brighter.png", "--levels", 0)) == ["other-picture"]
    Image.fromarray((255 - pixels).astype(np.uint8)).save("negative.png")
    assert codes(report("negative.png")) == ["other-picture"]
    Image.open("picture.png").resize((96, 96)).save("small.png")
    assert codes(report("small.png")) == ["other-size"]


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_other_formats(ending: str) -> None:
    hybridge("decode", "z.safetensors", "-o", f"picture.{ending}", "--metadata")
    found = report(f"picture.{ending}")
    assert found["facts"]["verdict"] == "equal"
    assert codes(found) == (["lossy-picture"] if ending == "jpg" else [])


def test_a_lossy_copy_is_alike() -> None:
    hybridge("decode", "z.safetensors", "-o", "picture.png")
    Image.open("picture.png").save("copy.webp", quality=95)
    found = report("copy.webp", "--levels", 0)
    assert codes(found)[0] == "lossy-picture"
    Image.open("picture.png").save("copy.jpg", quality=30)
    assert report("copy.jpg")["facts"]["verdict"] == "equal"


def test_what_differs_from_the_receipt_is_said() -> None:
    hybridge("decode", "z.safetensors", "-o", "picture.png", "--metadata")
    data = Path("picture.png").read_bytes()
    receipt = receipt_in(data)
    assert receipt is not None
    with Image.open("picture.png") as file:
        from PIL.PngImagePlugin import PngInfo

        facts = {**receipt.facts, "weights": "sha256:0", "dtype": "float16", "latents": "sha256:1", "torch": "1"}
        text = PngInfo()
        text.add_itxt("hybridge", json.dumps(facts))
        file.save("other.png", pnginfo=text)
    found = report("other.png")
    assert found["facts"]["verdict"] == "equal"
    assert sorted(codes(found)) == ["other-latents", "other-libraries", "other-precision", "other-weights"]


class TestServer:
    @pytest.mark.parametrize("ending", FORMATS)
    def test_a_server_writes_receipts_on_request(self, server: str, ending: str) -> None:
        latents = pipeline_latents()["photograph"]
        query = "shape=1,4,24,24&dtype=float32&scaling_factor=0.18215&metadata=true"
        headers = {"content-type": "tensor/binary", "accept": FORMATS[ending]}
        answer = httpx.post(
            f"{server}/v1/sd-v1/decode?{query}", content=latents.tobytes(), headers=headers, timeout=60
        )
        receipt = receipt_in(answer.content)
        assert receipt is not None
        own = Receipt.from_header(answer.headers["hybridge-receipt"])
        assert own.facts.items() <= receipt.facts.items() | {("weights", own.facts.get("weights"))}
        assert receipt.facts["model"] == "sd-v1"
        assert receipt.facts["exactness"] == "bitwise"
        assert receipt.facts["weights"].startswith("sha256:")
        assert receipt.facts["scaling"] == "given 0.18215 -"
        Path(f"picture.{ending}").write_bytes(answer.content)
        found = report(f"picture.{ending}", "--server", server)
        assert found["facts"]["verdict"] == "equal", found

    def test_files_have_none_without_being_asked(self, server: str) -> None:
        latents = pipeline_latents()["photograph"]
        answer = httpx.post(
            f"{server}/v1/sd-v1/decode?shape=1,4,24,24&dtype=float32&scaling_factor=0.18215",
            content=latents.tobytes(),
            headers={"content-type": "tensor/binary", "accept": "image/png"},
            timeout=60,
        )
        assert receipt_in(answer.content) is None
        assert "hybridge-receipt" in answer.headers


def test_a_hostile_receipt_is_harmless() -> None:
    assert Receipt.from_json("[" * 100_000) is None
    assert Receipt.from_json("[]") is None
    facts = Receipt.from_json(json.dumps({"model": "a\r\nb; weights=c", "path": "/home"}))
    assert facts is not None
    assert facts.header() == "model=a??b? weights?c"
    assert find_receipt(None, b"<hybridge:receipt>{</hybridge:receipt>") is None
    assert find_receipt(None, None) is None


def test_a_picture_whose_decoder_was_shown_another() -> None:
    hybridge("decode", "z.safetensors", "-o", "picture.png", "--metadata")
    with Image.open("picture.png") as file:
        info, facts = PngInfo(), json.loads(file.info["hybridge"])
        info.add_itxt("hybridge", json.dumps({**facts, "image": "sha256:1", "mask": "sha256:2"}))
        file.save("shown.png", pnginfo=info)
    done = hybridge("verify", "shown.png", "--latents", "z.safetensors", check=False)
    assert done.returncode != 0
    assert "saw a receipt that names an image and a mask" in " ".join(done.stderr.split())
