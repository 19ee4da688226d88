"""Extension of SD.Next that sends its remote VAE, and on request its remote T5, to a hybridge server.

SD.Next has two tables with an address for each type of model, one for decoding and one for encoding, and reads them
at every call.  The address of its remote T5 is the variable ``SD_REMOTE_T5``.  Nothing else of SD.Next is touched.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any
from urllib.parse import urlsplit

import requests
from modules import script_callbacks, shared

log = logging.getLogger("sd")  # SD.Next's own

#: The address, where it is not to be in SD.Next's config.json.
VARIABLE = "SD_HYBRIDGE_SERVER"

#: The variable that SD.Next reads when it loads a model of Flux, and again for each prompt.
T5_VARIABLE = "SD_REMOTE_T5"

#: Where SD.Next has its tables, newest version first.
_REMOTE_VAES = ("modules.vae.sd_vae_remote", "modules.sd_vae_remote")

#: Names of the server's models for each of SD.Next's types, best first.  Other types send latents that the
#: server cannot read: packed ones without the picture's size.
_MODELS = {
    **dict.fromkeys(("sd", "pixartalpha"), ("sd-v1",)),
    **dict.fromkeys(("sdxl", "pixartsigma", "hunyuandit", "auraflow", "omnigen"), ("sdxl", "sdxl-original")),
    **dict.fromkeys(("f1", "h1", "chroma", "zimage", "lumina2"), ("flux",)),
    "hunyuanvideo": ("hunyuan-video",),
    "sd3": ("sd3",),
    "sana": ("sana",),
    "wanai": ("wan-2.1",),
}

#: For the name of a machine.  SD.Next's HTTP library reads this file; SD.Next itself sends no key.
_WHERE_KEYS_GO = "put `machine {} login hybridge password KEY` into ~/.netrc, with the mode 0600"

#: Seconds to connect and to answer.
_TIMEOUT_S = (3, 10)


def server_address(text: str) -> str:
    """Return a server's address without a slash at its end.

    Raises:
        ValueError: for what is no address, or has a key in it: SD.Next stores its settings, and logs addresses.
    """
    address = text.strip().rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("this is no address of a server; expected http://host:8000")
    if "@" in parts.netloc or parts.query or parts.fragment or parts.path.startswith("/k/"):
        where = _WHERE_KEYS_GO.format(parts.hostname)
        raise ValueError(f"SD.Next stores and logs this address: no key in it; {where}")
    return address


def served_models(address: str) -> list[dict[str, Any]]:
    """Return the server's models, as ``GET /v1/models`` describes them.

    Raises:
        ValueError: when there is no hybridge server, or it wants another key.
    """
    try:
        response = requests.get(f"{address}/v1/models", timeout=_TIMEOUT_S)  # with the key from ~/.netrc
    except requests.RequestException as error:
        raise ValueError(f"no answer from {address} ({type(error).__name__}); does `hybridge serve` run?") from None
    if response.status_code == 401:
        host = urlsplit(address).hostname
        raise ValueError(f"{address} wants a key; {_WHERE_KEYS_GO.format(host)}")
    try:
        models = response.json()["models"]
        return [model for model in models if isinstance(model["name"], str)]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{address} is not a hybridge server; it answers {response.status_code}") from None


def endpoint(address: str, task: str, candidates: tuple[str, ...], served: set[str]) -> str:
    """Return the address for a type of model; without a name the server infers the model, or refuses.

    SD.Next sends the VAE's factor where it has one, which then counts; for other VAEs the server scales.
    """
    name = next((name for name in candidates if name in served), None)
    path = f"/v1/{name}/{task}" if name else "/"
    return f"{address}{path}?do_scaling=True"


def remote_vae() -> Any:
    """Return SD.Next's module with the two tables.

    Raises:
        ModuleNotFoundError: when this SD.Next has none.
    """
    for name in _REMOTE_VAES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):  # something else that it imports
                raise
    raise ModuleNotFoundError("this SD.Next has no remote VAE; 2025-03 or later has")


class Addresses:
    """SD.Next's addresses of remote VAEs and of its remote T5, which the settings replace.

    Args:
        tables: SD.Next's module with the two tables.
    """

    def __init__(self, tables: Any) -> None:
        self._decode, self._encode = tables.hf_decode_endpoints, tables.hf_encode_endpoints
        self._before = dict(self._decode), dict(self._encode), os.environ.get(T5_VARIABLE)

    def restore(self) -> None:
        """Put back what was there before."""
        decode, encode, t5 = self._before
        for table, before in ((self._decode, decode), (self._encode, encode)):
            table.clear()
            table.update(before)
        if t5 is None:
            os.environ.pop(T5_VARIABLE, None)
        else:
            os.environ[T5_VARIABLE] = t5

    def follow_settings(self) -> None:
        """Fill the tables for the server of the settings; log a sentence if it is not there."""
        self.restore()
        text = os.environ.get(VARIABLE) or shared.opts.data.get("hybridge_server", "")
        if not text.strip():
            return
        try:
            address = server_address(text)
        except ValueError as error:
            log.error(f"hybridge: {error}")
            return
        models: list[dict[str, Any]] = []
        try:
            models = served_models(address)
        except ValueError as error:
            log.warning(f"hybridge: {error}")
        served = {model["name"] for model in models}
        for table, task in ((self._decode, "decode"), (self._encode, "encode")):
            for kind in {*table, *_MODELS}:
                table[kind] = endpoint(address, task, _MODELS.get(kind, ()), served)
        log.info(f"hybridge: remote VAE at {address}, models: {', '.join(sorted(served)) or 'unknown'}")
        if shared.opts.data.get("hybridge_t5", False):
            self._use_t5(address, models)

    def _use_t5(self, address: str, models: list[dict[str, Any]]) -> None:
        from modules import devices

        classes = [str(model["text"].get("class")) for model in models if isinstance(model.get("text"), dict)]
        if models and not any(name.startswith("Flux") and not name.startswith("Flux2") for name in classes):
            log.warning("hybridge: this server has no T5 of Flux; `hybridge serve flux` has")
            return
        # SD.Next takes the answer's bytes for numbers of its own dtype.
        dtype = str(devices.dtype).rpartition(".")[2]
        os.environ[T5_VARIABLE] = f"{address}/te?dtype={dtype}"
        log.info("hybridge: remote T5 for models of Flux that are loaded from now on")


def on_app_started(*_: Any) -> None:
    """Fill the tables, once SD.Next has read its settings, and again when they change."""
    addresses = Addresses(remote_vae())
    for name in ("hybridge_server", "hybridge_t5"):
        if name in shared.opts.data_labels:  # not without the web UI
            shared.opts.onchange(name, addresses.follow_settings, call=False)
    script_callbacks.on_script_unloaded(addresses.restore)
    addresses.follow_settings()


def on_ui_settings() -> None:
    """Add the settings."""
    section = ("hybridge", "hybridge")
    server = shared.OptionInfo("", "Address of a hybridge server", section=section)
    t5 = shared.OptionInfo(False, "Also use its T5 for Flux models", section=section)
    shared.opts.add_option("hybridge_server", server)
    shared.opts.add_option("hybridge_t5", t5)


script_callbacks.on_ui_settings(on_ui_settings)
script_callbacks.on_app_started(on_app_started)
