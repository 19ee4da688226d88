"""As much of the Hugging Face hub's API as a download needs, on loopback, over folders on disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


@contextmanager
def serving_hub(
    repositories: dict[str, Path], gated: frozenset[str] = frozenset(), *, failing: Sequence[int] = ()
) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with these repositories, and the paths of the files that were fetched from it.

    Requests for files are answered with the statuses of ``failing``, one after the other, the last one for ever.
    """
    fetched: list[str] = []
    statuses = list(failing)

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if path.startswith("api/models/"):
                self.describe(path.removeprefix("api/models/"))
            else:
                repository, _, file = path.partition(f"/resolve/{COMMIT}/")
                self.file(repository, file) if repository in repositories else self.reply(404, b"{}")

        def describe(self, rest: str) -> None:
            repository = "/".join(rest.split("/")[:2])
            if repository not in repositories:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            root = repositories[repository]
            names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
            if "/tree/" in rest:
                listing = [
                    {"type": "file", "path": n, "size": (root / n).stat().st_size, "oid": "0"} for n in names
                ]
                self.reply(200, json.dumps(listing).encode())
                return
            about = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self.reply(200, json.dumps(about).encode())

        def file(self, repository: str, name: str) -> None:
            if repository in gated:
                self.reply(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
                return
            if statuses:
                self.reply(statuses.pop(0) if len(statuses) > 1 else statuses[0], b"{}")
                return
            data = (repositories[repository] / name).read_bytes()
            if self.command == "GET":
                fetched.append(name)
            etag = hashlib.sha256(data).hexdigest()
            self.reply(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
