"""The doctor for servers: whether one is there, is to be trusted, and decodes."""

from __future__ import annotations

import contextlib
import difflib
import random
import struct
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ..errors import BadAnswer, ClientError, HybridgeError, ServerRefused
from .doctor_report import Report

if TYPE_CHECKING:
    from ..client import Client

#: Seconds by which clocks may differ.
_CLOCK_S = 60.0

#: HTTP: too many requests; from here on it is the server's fault, or that of a proxy before it.
_TOO_MANY, _OF_SERVERS = 429, 500

#: Side of the latents that are decoded.
_SIDE = 8


def look_at_server(report: Report, address: str, model: str | None, key: str | None, ca: str | None) -> None:
    """Look at a server: its certificate, key, version, clock and models, and a small decode by each loaded one."""
    from .. import __version__
    from ..client import Client
    from ..client.retry import Retry

    try:
        with Client(address, api_key=key, verify=ca, retries=Retry(attempts=1), timeout=60.0) as client:
            models = client.models()
            _look_at_index(report, address, key, ca, __version__)
            _look_at_models(report, client, models, model)
    except HybridgeError as error:
        report.add_error(error, _code_of(error))


def _code_of(error: HybridgeError) -> str:
    if isinstance(error, ServerRefused):
        is_busy = error.status == _TOO_MANY or error.status >= _OF_SERVERS
        return "key-needed" if error.status in (401, 403) else "not-ready" if is_busy else "not-hybridge"
    if isinstance(error, BadAnswer):
        return "not-hybridge"
    # Not in its first words, which have the server's name.
    is_tls = isinstance(error, ClientError) and "CERTIFICATE_VERIFY_FAILED" in str(error.saw)
    return "certificate-not-trusted" if is_tls else "unreachable"


def _look_at_index(report: Report, address: str, key: str | None, ca: str | None, version: str) -> None:
    import httpx

    from ..client.network import Network, network_to
    from ..client.profiles import addresses_of
    from ..client.transport_errors import loss

    server = addresses_of(address, key)[0]
    # The client's own way there: through its proxies, and past the environment's for this machine.
    network = network_to([server], Network, None, ca)
    try:
        with httpx.Client(transport=network, timeout=30.0, headers=server.headers()) as http:
            answer = http.get(server.resolve("/"))
            ready = http.get(server.resolve("/ready"))
    except httpx.RequestError as error:
        raise loss(error, server) from None
    try:
        document: Any = answer.json()
    except (ValueError, RecursionError):
        document = {}
    found = document.get("version") if isinstance(document, dict) else None
    report.facts["version"] = found
    if found != version:
        report.add("other-version", f"the server has {found} and this program {version}")
    if ready.is_error:
        report.add("not-ready", f"/ready answers {ready.status_code}")
    date = answer.headers.get("date", "")
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # no date, or none that can be read
        if abs(parsedate_to_datetime(date).timestamp() - time.time()) > _CLOCK_S:
            report.add("clock-differs", f"the server says {date[:40]}")


def _look_at_models(report: Report, client: Client, models: list[dict[str, Any]], wanted: str | None) -> None:
    try:
        report.facts["models"] = [
            f"{one['name']} ({one['state']}, {one['dtype']} on {one['device']})" for one in models
        ]
        names = [str(one["name"]) for one in models]
        if wanted is not None and wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            report.add("model-failed", f"the server has no {wanted[:60]}", *near)
        for one in models:
            if wanted not in (None, one["name"]):
                continue
            if one.get("failure"):
                report.add("model-failed", f"{one['name']}: {one['failure']}")
            elif "decode" in one["tasks"] and (one["state"] == "loaded" or wanted):
                _decode(report, client, one)
    except (AttributeError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"[:80]
        report.add("not-hybridge", f"/v1/models does not say what this release says of models ({said})")


def _decode(report: Report, client: Client, model: dict[str, Any]) -> None:
    from ..models.vae_classes import VAE_CLASSES
    from ..protocol import WireTensor

    known = VAE_CLASSES.get(str(model["class"]))
    sides = {"B": 1, "C": model["latent_channels"], "T": 1, "H": _SIDE, "W": _SIDE}
    shape = [sides[axis] for axis in (known.axes if known else "BCHW")]
    count = model["latent_channels"] * _SIDE**2
    draw = random.Random(0)  # noqa: S311 - numbers for a picture, not for a secret
    data = struct.pack(f"<{count}f", *(draw.gauss(0.0, 1.0) for _ in range(count)))
    begun = time.perf_counter()
    try:
        client.decode(
            WireTensor("float32", tuple(shape), data), model=model["name"], do_scaling=True, output="pixels"
        )
    except HybridgeError as error:
        report.add_error(error, "decode-failed")
        return
    report.facts[f"decode by {model['name']}"] = f"worked, in {time.perf_counter() - begun:.2f} s"
