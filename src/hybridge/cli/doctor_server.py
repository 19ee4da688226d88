"""The doctor for servers: whether one is there, is to be trusted, and decodes."""

from __future__ import annotations

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
        return (
            "key-needed" if error.status in (401, 403) else "not-ready" if error.status == 503 else "not-hybridge"
        )
    if isinstance(error, BadAnswer):
        return "not-hybridge"
    said = str(error).lower()
    is_tls = isinstance(error, ClientError) and ("certificate" in said or "ssl" in said or "tls" in said)
    return "certificate-not-trusted" if is_tls else "unreachable"


def _look_at_index(report: Report, address: str, key: str | None, ca: str | None, version: str) -> None:
    import httpx

    from ..client.profiles import addresses_of
    from ..client.tls import Trust

    server = addresses_of(address, key)[0]
    trust = Trust.to([server], ca)
    with httpx.Client(verify=trust.of(server.url), timeout=30.0, headers=server.headers()) as http:
        answer = http.get(server.resolve("/"))
        ready = http.get(server.resolve("/ready"))
    try:
        document: Any = answer.json()
    except ValueError:
        document = {}
    found = document.get("version") if isinstance(document, dict) else None
    report.facts["version"] = found
    if found != version:
        report.add("other-version", f"the server has {found} and this program {version}")
    if ready.is_error:
        report.add("not-ready", f"/ready answers {ready.status_code}")
    date = answer.headers.get("date")
    if date is not None and abs(parsedate_to_datetime(date).timestamp() - time.time()) > _CLOCK_S:
        report.add("clock-differs", f"the server says {date}")


def _look_at_models(report: Report, client: Client, models: list[dict[str, Any]], wanted: str | None) -> None:
    report.facts["models"] = [
        f"{one['name']} ({one['state']}, {one['dtype']} on {one['device']})" for one in models
    ]
    for one in models:
        if wanted not in (None, one["name"]):
            continue
        if one.get("failure"):
            report.add("model-failed", f"{one['name']}: {one['failure']}")
        elif "decode" in one["tasks"] and (one["state"] == "loaded" or wanted):
            _decode(report, client, one)


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
