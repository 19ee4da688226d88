"""Fetching a model's folder from Google Cloud Storage, against an imitation of its API and the metadata server."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from hybridge.errors import HybridgeError
from hybridge.server.process.cloud_storage import fetch_folder, fetched


@dataclass
class Bucket:
    """What the imitation has, and who asked."""

    objects: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)

    def page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """One object at a time, as if the listing was long."""
        names = sorted(name for name in self.objects if name.startswith(query["prefix"][0]))
        at = int(query.get("pageToken", ["0"])[0])
        items = [
            {"name": name, "size": str(self.sizes.get(name, len(self.objects[name])))}
            for name in names[at : at + 1]
        ]
        return {"items": items, **({"nextPageToken": str(at + 1)} if at + 1 < len(names) else {})}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    made = Bucket()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            objects = "/storage/v1/b/models/o"
            if parts.path.startswith("/computeMetadata/"):
                assert self.headers["metadata-flavor"] == "Google"
                self.answer(json.dumps({"access_token": "a-token"}).encode())
                return
            made.tokens.add(self.headers["authorization"])
            if parts.path == objects:
                self.answer(json.dumps(made.page(parse_qs(parts.query))).encode())
            elif parts.path.startswith(f"{objects}/"):
                self.answer(made.objects[unquote(parts.path.removeprefix(f"{objects}/"))])
            else:
                self.send_error(403)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield made
        server.shutdown()


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
