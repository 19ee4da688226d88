"""Accepted requests and their results on disk, where they survive the process.

A job is two files, ``ID.request`` and ``ID.result``, each one line of JSON and then the body as it was sent.
Nothing is pickled, and no key is ever among it.  A file is written under another name, synced and renamed, and the
folder synced: it is there as a whole or not at all, whenever the power fails.

What cannot be read when the server starts (cut short, of another kind, a link) is moved to the folder ``set-aside``
and never deleted, so that one bad file does not hold up the other jobs.  Fields that this version does not know are
ignored and stay in the file.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from ...errors import HybridgeError, Overloaded, StorageFailure, StorageFull
from ...protocol import HttpResponse, Task
from .spool_file import Damaged, check_body, open_file, read_body, read_head, write
from .store import ResultMissing, StoredJob, StoredRequest, StoredResult

log = logging.getLogger("hybridge.jobs")

_SET_ASIDE = "set-aside"

#: Names of files that are the spool's.  Whatever else lies in the folder is left alone.
_OURS = re.compile(r"(?P<id>.*)\.(?P<kind>request|result)(?P<half>\.new)?", re.DOTALL)

#: What a job's id is made of; the server's own have 22.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OWN_ID_LENGTH = 22

#: Results that may be open at one time: each takes an open file until it is sent.
_MOST_OPEN = 128

#: The disk is full, the user's share of it is, or a file may not grow further.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class SpoolStore:
    """A store in a folder, which belongs to one process at a time.

    Args:
        folder: Made if it is not there; readable by its owner alone.

    Raises:
        HybridgeError: when it cannot be used, or others may write there.
    """

    is_durable = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changing = threading.Lock()  # the event loop takes it, too, so nothing is synced inside it
        self._stray: dict[Path, int] = {}
        self._open = 0
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows, which cannot sync a folder either
            raise HybridgeError(
                "a spool needs a system with POSIX's file locks",
                saw=os.name,
                hint="without --spool, or the server in WSL or in a container",
            ) from None
        try:
            _make(folder)
            _check_owner(folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._lock: int | None = os.open(folder / "lock", flags, 0o600)
        except OSError as error:
            is_link = error.errno == errno.ELOOP
            why = "its lock is a symbolic link" if is_link else error.strerror
            raise HybridgeError("the spool cannot be used", saw=f"{why}: {folder}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if not isinstance(error, BlockingIOError):
                raise HybridgeError("the spool cannot be locked", saw=f"{error.strerror}: {folder}") from None
            raise HybridgeError(
                "another server uses this spool", saw=str(folder), hint="a folder of its own for each server"
            ) from None

    @property
    def stray_bytes(self) -> int:
        return sum(self._stray.values())

    def keep(self, stored: StoredRequest, body: bytes) -> None:
        path = self._path(stored.id, "request")
        with _failing_as("the spool cannot be written", StorageFailure):
            self._write_half(path, asdict(stored), body)
            _half(path).replace(path)
            _sync(self._folder)

    def body(self, stored: StoredRequest) -> bytes:
        with _failing_as("the spool cannot be read"):
            return read_body(self._path(stored.id, "request"))

    def finish(self, stored: StoredRequest, response: HttpResponse) -> None:
        path, request = self._path(stored.id, "result"), self._path(stored.id, "request")
        with _failing_as("the spool cannot be written", StorageFailure):
            if not request.exists():  # it was removed meanwhile
                return
            self._write_half(path, {"status": response.status, "headers": response.headers}, response.body)
            with self._changing:
                if not request.exists():
                    self._drop(_half(path))
                    return
                _half(path).replace(path)
            _sync(self._folder)

    def result(self, stored: StoredRequest) -> StoredResult:
        with self._changing:
            if self._open >= _MOST_OPEN:
                raise Overloaded(f"{self._open} results are being fetched already", retry_after_s=1)
            self._open += 1
        try:
            return self._result(stored)
        except BaseException:
            self._close_one()
            raise

    def remove(self, stored: StoredRequest) -> None:
        with _failing_as("the spool cannot be written", StorageFailure):
            with self._changing:
                for kind in ("request", "result"):  # in this order: recover() drops a result without a request
                    if not self._drop(self._path(stored.id, kind)):
                        raise StorageFailure("a job's files cannot be deleted", hint="whoever runs the server")
            _sync(self._folder)

    def recover(self) -> list[StoredJob]:
        with _failing_as("the spool cannot be read"):
            ours = [match for name in sorted(os.listdir(self._folder)) if (match := _OURS.fullmatch(name))]
            found: dict[str, StoredJob] = {}
            aside: set[str] = set()
            for match in ours:
                if match["half"]:
                    self._drop_half(match[0])
                elif match["kind"] == "request":
                    try:
                        found[match["id"]] = _found(match["id"], self._folder / match[0])
                    except Damaged as why:
                        aside.add(match["id"])
                        self._set_aside(match[0], str(why))
                    except FileNotFoundError:  # somebody tidies up the folder
                        continue
            for match in ours:
                if match["kind"] != "result" or match["half"]:
                    continue
                try:
                    one = _with_result(found.get(match["id"]), self._folder / match[0])
                    if match["id"] in aside:
                        raise Damaged("the result of a request that was set aside")
                except Damaged as why:
                    self._set_aside(match[0], str(why))
                    continue
                except FileNotFoundError:
                    continue
                if one is None:
                    self._drop(self._folder / match[0])
                else:
                    found[match["id"]] = one
        return sorted(found.values(), key=lambda one: one.stored.made_at)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------------------------------ inside

    def _path(self, job_id: str, kind: str) -> Path:
        return self._folder / f"{job_id}.{kind}"

    def _write_half(self, path: Path, about: dict[str, Any], body: bytes) -> None:
        for stray in list(self._stray):
            self._drop(stray)
        half_written = _half(path)
        try:
            write(half_written, about, body)
        except BaseException:
            self._drop(half_written)
            raise

    def _result(self, stored: StoredRequest) -> StoredResult:
        request = self._path(stored.id, "request")
        with _failing_as("the spool cannot be read"):
            try:
                head, body_bytes, file = open_file(self._path(stored.id, "result"))
                try:
                    check_body(head, file)
                    status, headers = _status(head), _headers(head)
                except BaseException:
                    file.close()
                    raise
            except (Damaged, FileNotFoundError) as error:
                if not request.exists():
                    raise
                why = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
                raise ResultMissing("a result cannot be read", saw=why) from None
        return StoredResult(status, headers, body_bytes, file, self._close_one)

    def _close_one(self) -> None:
        with self._changing:
            self._open -= 1

    def _drop(self, path: Path) -> bool:
        """Deletes a file; what cannot be deleted is counted, and tried again with the next write."""
        try:
            path.unlink(missing_ok=True)
        except OSError:
            try:
                self._stray[path] = path.lstat().st_size
            except OSError:  # not even that is known, so the disk is gone
                self._stray.pop(path, None)
            return False
        self._stray.pop(path, None)
        return True

    def _drop_half(self, name: str) -> None:
        """Deletes what a process that was killed had half written; what it cannot have written is set aside."""
        path = self._folder / name
        if _ID.fullmatch(name.split(".", 1)[0]) and stat.S_ISREG(path.lstat().st_mode):
            self._drop(path)
        else:
            self._set_aside(name, "not a regular file")

    def _set_aside(self, name: str, why: str) -> None:
        folder = self._folder / _SET_ASIDE
        stem = name.split(".", 1)[0]
        # Of a job's id only the beginning is logged: whoever knows all of it may fetch the result.
        shown = f"{stem[:4]}…{name[len(stem) :]}" if len(stem) == _OWN_ID_LENGTH else ascii(name[:80])
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            aim, number = folder / name, 0
            while os.path.lexists(aim):
                number += 1
                aim = folder / f"{name}.{number}"
            (self._folder / name).rename(aim)
        except OSError as error:
            log.warning("%s in the spool is no job (%s), and cannot be set aside: %s", shown, why, error.strerror)
        else:
            log.warning("%s in the spool is no job (%s), and was moved to %s", shown, why, folder)


def _make(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    folder.chmod(0o700)  # whatever the umask is
    _sync(folder.parent)


def _check_owner(folder: Path) -> None:
    """Refuses a folder in which others could put requests, or swap files while the server runs."""
    about = folder.stat()
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid not in (os.geteuid(), 0) or mode & 0o022:
        raise HybridgeError(
            "others may write in the spool's folder",
            saw=f"{folder}, mode {mode:04o}, owned by user {about.st_uid}",
            expected=f"mode 0700, owned by user {os.geteuid()}",
            hint=f"chmod 700 {folder}, or a new folder inside it, which the server makes",
        )
    if mode & 0o055:
        log.warning(
            "others may list the spool's folder, and so learn ids of jobs, which open them where there are no keys."
            " Try: chmod 700 %s",
            folder,
        )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _half(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


@contextmanager
def _failing_as(what: str, kind: type[HybridgeError] = HybridgeError) -> Iterator[None]:
    """Turns an error of the disk into one of ours, without the file's name: the job's id is part of it."""
    try:
        yield
    except Damaged as error:
        raise HybridgeError(what, saw=str(error)) from None
    except OSError as error:
        if kind is StorageFailure and error.errno in _NO_ROOM:
            raise StorageFull(
                what, saw=error.strerror, hint="again later, or without Prefer: respond-async"
            ) from None
        raise kind(what, saw=error.strerror) from None


def _found(name: str, path: Path) -> StoredJob:
    """The job of a request's file; fields that this version does not know are not read."""
    head, about = read_head(path)
    known = {field.name: head[field.name] for field in fields(StoredRequest) if field.name in head}
    made_at, headers, task = head.get("made_at"), head.get("headers"), head.get("task")
    texts = [head.get(field) for field in ("id", "client", "query")]
    texts += [head.get("request_id", ""), "" if head.get("model") is None else head["model"]]
    if (
        not _ID.fullmatch(name)
        or head.get("id") != name
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(made_at, int | float)
        or not math.isfinite(made_at)
        or not _are_headers(headers)
        or task not in (None, *get_args(Task))
    ):
        raise Damaged("no request of this server")
    return StoredJob(StoredRequest(**{"model": None, "task": None, **known}), about.st_size)


def _with_result(found: StoredJob | None, path: Path) -> StoredJob | None:
    head, about = read_head(path)
    status = _status(head)
    _headers(head)
    if found is None:
        return None
    return replace(found, result_bytes=about.st_size, done_at=about.st_mtime, status=status)


def _status(head: dict[str, Any]) -> int:
    status = head.get("status")
    if not isinstance(status, int) or not 100 <= status <= 599:
        raise Damaged("no result of this server")
    return status


def _headers(head: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = head.get("headers", {})
    if not _are_headers(headers):
        raise Damaged("no result of this server")
    return headers


def _are_headers(headers: object) -> bool:
    return isinstance(headers, dict) and all(isinstance(value, str) for pair in headers.items() for value in pair)
