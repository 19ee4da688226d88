"""Fetching a model's folder from Google Cloud Storage, against an imitation of its API and the metadata server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import Bucket, bucket_of_models

from hybridge.errors import HybridgeError
from hybridge.server.process.cloud_storage import fetch_folder, fetched


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    with bucket_of_models() as (made, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield made


def test_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects = {
        "a folder/": b"",
        "a folder/config.json": b"{}",
        "a folder/vae/weights.safetensors": b"12345",
        "a folder of others/x": b"no",
    }
    argument = fetched("model=gs://models/a folder:vae")
    name, _, folder = argument.removesuffix(":vae").partition("=")
    assert name == "model"
    assert argument.endswith(":vae")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    assert files == {"config.json": b"{}", "vae/weights.safetensors": b"12345"}
    assert bucket.tokens == {"Bearer a-token"}


@pytest.mark.parametrize("argument", ["sdxl", "mine=./folder", "mine=hub/repo:vae"])
def test_other_arguments_stay(argument: str) -> None:
    assert fetched(argument) == argument


def test_without_a_metadata_server_nobody_asks_with_a_token(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    bucket.objects = {"m/config.json": b"{}"}
    fetch_folder("gs://models/m", tmp_path / "m")
    assert bucket.tokens == {None}


@pytest.mark.parametrize("name", ["m/../../outside", "m//etc/passwd", "m/a\\b"])
def test_a_name_that_leads_elsewhere(bucket: Bucket, name: str, tmp_path: Path) -> None:
    bucket.objects = {name: b"x"}
    with pytest.raises(HybridgeError, match="no path within a folder"):
        fetch_folder("gs://models/m", tmp_path / "m")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("uri", "sizes", "said"),
    [
        ("gs://models/other", {}, "no model in this folder"),
        ("gs://private/m", {}, "status 403"),
        ("gs://models/m", {"m/a": 2**60}, "are free on disk"),
        ("gs://models/m", {"m/a": 1}, "its listing says 1"),
        ("gs://models/m", {"m/a": 9}, "its listing says 9"),
    ],
)
def test_what_cannot_be_fetched(bucket: Bucket, uri: str, sizes: dict[str, int], said: str, tmp_path: Path) -> None:
    bucket.objects, bucket.sizes = {"m/a": b"123"}, sizes
    with pytest.raises(HybridgeError, match=said):
        fetch_folder(uri, tmp_path / "m")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
