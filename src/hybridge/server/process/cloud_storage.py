"""Fetch a folder of Google Cloud Storage, which is where Vertex AI puts a model, with the storage's JSON API.

On Google's machines a token comes from the metadata server; without one, only public buckets can be read.  As in
Google's own libraries, ``STORAGE_EMULATOR_HOST`` and ``GCE_METADATA_HOST`` name other addresses of the two.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from ...errors import HybridgeError

SCHEME = "gs://"

#: Most objects of a model's folder; a pipeline has some dozens.
_MOST_OBJECTS = 2000

_TIMEOUT_S = 60.0
_METADATA_TIMEOUT_S = 3.0


def fetched(argument: str) -> str:
    """Return an argument of ``hybridge serve``, with a copy on disk in place of a ``gs://`` folder.

    Raises:
        HybridgeError: when the folder cannot be fetched.
    """
    name, separator, source = argument.partition("=")
    if not separator or not source.startswith(SCHEME):
        return argument
    folder, colon, part = source.removeprefix(SCHEME).partition(":")
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return f"{name}={fetch_folder(f'{SCHEME}{folder}', Path(base) / 'hybridge' / 'gs' / folder)}{colon}{part}"


def fetch_folder(uri: str, into: Path) -> Path:
    """Fetch all objects whose names begin with that of a folder, and return where they are.

    Args:
        uri: ``gs://BUCKET/FOLDER``.
        into: The folder on disk; files of the same names are replaced.

    Raises:
        HybridgeError: when there are none, or too many, or they cannot be read or written.
    """
    bucket, _, folder = uri.removeprefix(SCHEME).strip("/").partition("/")
    prefix = f"{folder}/" if folder else ""
    address = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    objects = f"{address.rstrip('/')}/storage/v1/b/{quote(bucket, safe='')}/o"
    try:
        with httpx.Client(timeout=_TIMEOUT_S, headers=_authorization(), follow_redirects=False) as http:
            files = {_relative(name, prefix): (name, size) for name, size in _list(http, objects, prefix)}
            if not files:
                raise HybridgeError("there is no model in this folder", saw=uri, expected="a folder with files")
            _check_room(into, sum(size for _, size in files.values()))
            for relative, (name, size) in files.items():
                _fetch(http, f"{objects}/{quote(name, safe='')}", into / relative, size)
    except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        raise HybridgeError(
            "the model cannot be fetched from Cloud Storage",
            saw=f"{uri}: {_why(error)}",
            expected="a bucket that the service account of this machine may read",
        ) from None
    return into


def _authorization() -> dict[str, str]:
    """Return the header with the token of this machine's service account; none elsewhere than at Google."""
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    try:
        response = httpx.get(
            f"http://{host}{path}",
            headers={"metadata-flavor": "Google"},
            timeout=_METADATA_TIMEOUT_S,
            trust_env=False,  # never through a proxy
        )
        return {"authorization": f"Bearer {response.raise_for_status().json()['access_token']}"}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return {}


def _list(http: httpx.Client, objects: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield the names of the objects and their sizes in bytes."""
    page: dict[str, Any] = {}
    found = 0
    while True:
        query = {"prefix": prefix, "fields": "items(name,size),nextPageToken"}
        if page:
            query["pageToken"] = page["nextPageToken"]
        page = http.get(objects, params=query).raise_for_status().json()
        for one in page.get("items", []):
            found += 1
            if found > _MOST_OBJECTS:
                raise ValueError(f"more than {_MOST_OBJECTS} objects, so this is not the folder of a model")
            if not one["name"].endswith("/"):  # which stands for an empty folder
                yield one["name"], int(one["size"])
        if "nextPageToken" not in page:
            return


def _relative(name: str, prefix: str) -> PurePosixPath:
    """Return an object's path within the folder."""
    path = PurePosixPath(name.removeprefix(prefix))
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"an object has the name {name[:80]!r}, which is no path within a folder")
    return path


def _check_room(into: Path, needed_bytes: int) -> None:
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    if needed_bytes > free:
        raise ValueError(f"{needed_bytes} bytes, and {free} are free on disk")


def _fetch(http: httpx.Client, address: str, path: Path, size: int) -> None:
    """Write an object to a file that has another name until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    written = 0
    with http.stream("GET", address, params={"alt": "media"}) as response, partial.open("wb") as file:
        response.raise_for_status()
        for piece in response.iter_bytes():
            written += len(piece)
            if written > size:
                break
            file.write(piece)
    if written != size:
        partial.unlink()
        raise ValueError(f"{path.name} has {written} bytes or more, its listing says {size}")
    partial.replace(path)


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return str(error) or type(error).__name__
