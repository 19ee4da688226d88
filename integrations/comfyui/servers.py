"""Servers by the names of their profiles, and the facts about their models.

A widget holds the name of a profile and nothing else: every widget is part of the workflow, of each saved picture
and of the history.  The address and the key are in the profile, a file with mode 0600 or environment variables.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from hybridge.client import AsyncClient, ServerWarning, profiles
from hybridge.client.profiles import Profile
from hybridge.errors import HybridgeError

from . import background
from .background import Progress
from .messages import NodeError, told

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds for a look at a model before a prompt runs; a server that takes longer counts as unchanged.
_LOOK_S = 3.0

#: What decides about the numbers that a model gives.
_DECISIVE = ("name", "class", "revision", "weights", "dtype", "scaling", "config")

_HOW_TO_ADD = "`hybridge join` in a terminal, or HYBRIDGE_PROFILE_NAME_URL in ComfyUI's environment"


@dataclass(frozen=True, slots=True)
class Server:
    """A server, and the name that it has for users.

    Attributes:
        profile: Name of the profile.
        client: Sends requests, on :mod:`.background`'s event loop.
    """

    profile: str
    client: AsyncClient

    def __repr__(self) -> str:
        """Name the profile alone: ComfyUI shows nodes' inputs in errors."""
        return f"Server({self.profile!r})"

    def call(self, work: Callable[[AsyncClient, Progress], Awaitable[T]], *, shows_progress: bool = False) -> T:
        """Run one request and return its result.

        Raises:
            NodeError: for every failure, without the server's address.
            InterruptProcessingException: ComfyUI's own.
        """
        try:
            return background.run(lambda progress: work(self.client, progress), shows_progress=shows_progress)
        except HybridgeError as error:
            raise told(error, self.profile, self.client.server) from None

    def call_all(
        self,
        works: list[Callable[[AsyncClient, Progress], Awaitable[T]]],
        take: Callable[[int, T], None],
        *,
        shows_progress: bool = False,
        previews: SimpleQueue[Any] | None = None,
    ) -> None:
        """Run several requests; the arguments are those of :func:`.background.run_all`.

        Raises:
            NodeError, InterruptProcessingException: as for :meth:`call`; the other requests are cancelled.
        """

        def begun(work: Callable[[AsyncClient, Progress], Awaitable[T]]) -> background.Work[T]:
            return lambda progress: work(self.client, progress)

        try:
            begun_works = [begun(work) for work in works]
            background.run_all(begun_works, take, shows_progress=shows_progress, previews=previews)
        except HybridgeError as error:
            raise told(error, self.profile, self.client.server) from None

    def note(self, warning: str | None) -> None:
        """Write a server's warning about a request to ComfyUI's log."""
        if warning:
            log.warning("hybridge, %s: %s", self.profile, warning)

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of the server's models, as ``GET /v1/models`` has them."""
        return self.call(lambda client, _: _models(client))

    def model(self, name: str, task: str) -> dict[str, Any]:
        """Return the entry of a model that has a task.

        Args:
            name: Its name; "" for the only one.
            task: ``decode``, ``encode`` or ``prompt``.

        Raises:
            NodeError: when there is none, or several and no name; it lists those that there are.
        """
        return chosen(self.models(), name, task, self.profile)


def chosen(served: list[dict[str, Any]], name: str, task: str, profile: str) -> dict[str, Any]:
    """Return the entry of :meth:`Server.model` out of those of all models."""
    name = name.strip()
    fitting = {entry["name"]: entry for entry in served if task in (entry.get("tasks") or ())}
    if name in fitting:
        return fitting[name]
    known = ", ".join(fitting) or "none"
    if name and name in (entry.get("name") for entry in served):
        raise NodeError(f"{name!r} on the server {profile!r} cannot {_VERBS[task]}. Models that can: {known}")
    if name:
        raise NodeError(f"The server {profile!r} has no model {name[:80]!r}. It has: {known}")
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if not fitting:
        raise NodeError(f"The server {profile!r} has no model that can {_VERBS[task]}.")
    raise NodeError(f"The server {profile!r} has several models: write one of {known} into `model`.")


_VERBS = {"decode": "decode latents", "encode": "encode pictures", "prompt": "encode text"}


class _Servers:
    """The servers in use: one client for each profile, until the profile changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servers: dict[str, tuple[Profile, Server]] = {}
        self._fingerprints: dict[tuple[str, str, str], str] = {}

    def get(self, name: str) -> Server:
        profile = _profile(name)
        with self._lock:
            known, server = self._servers.get(profile.name, (None, None))
            if server is not None and known == profile:
                return server
            # The client warns with the server's address; `Server.note` says the same without it.
            warnings.filterwarnings("ignore", category=ServerWarning, module=re.escape(__package__ or ""))
            try:
                made = Server(profile.name, AsyncClient(profile.name))
            except HybridgeError as error:
                raise told(error, profile.name, ", ".join(profile.addresses)) from None
            if server is not None:
                background.begin(server.client.aclose())
            self._servers[profile.name] = (profile, made)
            return made

    def close(self) -> None:
        with self._lock:
            servers = [server for _, server in self._servers.values()]
            self._servers.clear()
        for server in servers:
            background.begin(server.client.aclose()).result()
        background.stop()

    def fingerprint(self, name: str, model: str, task: str) -> str:
        key = (name.strip(), model.strip(), task)
        try:
            server = self.get(name)
            facts = server.call(lambda client, _: _look(client, model, task, server.profile))
            self._fingerprints[key] = digest_of(facts, server.profile)
        except (NodeError, TimeoutError):
            pass  # the node itself says what is wrong, if it runs
        return self._fingerprints.get(key, "")


_SERVERS = _Servers()


def server_of(profile: str) -> Server:
    """Return the server of a profile; "" is the only profile.

    Raises:
        NodeError: when there is no such profile, or it is unusable.
    """
    return _SERVERS.get(profile)


def close() -> None:
    """Close all connections and end the thread of the requests; the next use begins others."""
    _SERVERS.close()


def fingerprint(profile: str, model: str, task: str) -> str:
    """Return what changes when a model of a server gives other numbers, for ComfyUI's cache of results.

    If the server cannot be asked in a few seconds, it is the last answer, so that results that are already there
    stay.
    """
    return _SERVERS.fingerprint(profile or "", model or "", task)


def digest_of(facts: dict[str, Any], profile: str) -> str:
    """Return a fingerprint of a model's entry, without what changes while it is loaded or leaves."""
    decisive = {name: facts.get(name) for name in _DECISIVE}
    text = facts.get("text")
    if isinstance(text, dict):
        decisive["text"] = [text.get(name) for name in ("class", "quantisation", "fingerprint")]
    told_apart = json.dumps([profile, decisive], sort_keys=True, default=str)
    return hashlib.sha256(told_apart.encode()).hexdigest()[:32]


def check_profile(profile: str) -> str | None:
    """Return why a widget's text cannot be the name of a profile; None if it can."""
    text = profile.strip()
    if text and not profiles.is_name(text):
        return (
            "`profile` takes the name of a profile, not an address: workflows and pictures are passed on."
            f" Make a profile with {_HOW_TO_ADD}."
        )
    return None


async def _models(client: AsyncClient) -> list[dict[str, Any]]:
    """Return the entries of a server's models, without those that a server of another version writes."""
    entries = await client.models()
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)]


async def _look(client: AsyncClient, model: str, task: str, profile: str) -> dict[str, Any]:
    async def looked() -> Any:
        return await client.model(chosen(await _models(client), model, task, profile)["name"])

    document = await asyncio.wait_for(looked(), _LOOK_S)
    return document if isinstance(document, dict) else {}


def _profile(name: str) -> Profile:
    name = name.strip()
    wrong = check_profile(name)
    if wrong is not None:
        raise NodeError(wrong)
    try:
        if name:
            return profiles.load(name)
        known = profiles.load_all()
    except HybridgeError as error:
        # Without its hint, which may be to write an address instead of a name.
        plain = HybridgeError(error.what, saw=error.saw, expected=error.expected)
        raise told(plain, name, "") from None
    if len(known) == 1:
        return known[0]
    if not known:
        raise NodeError(f"There is no profile of a server yet: add one with {_HOW_TO_ADD}.")
    raise NodeError(
        f"There are several profiles: write one of {', '.join(one.name for one in known)} into `profile`."
    )
