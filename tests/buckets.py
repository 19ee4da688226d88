"""A small imitation of Google Cloud Storage's JSON API, and of the metadata server of Google's machines."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


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


@contextmanager
def bucket_of_models() -> Iterator[tuple[Bucket, Mapping[str, str]]]:
    """The bucket ``models``, empty, and the variables with which it is found."""
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
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        yield made, {"STORAGE_EMULATOR_HOST": f"http://{host}", "GCE_METADATA_HOST": host}
        server.shutdown()
