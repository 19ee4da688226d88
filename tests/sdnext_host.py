"""As much of SD.Next as its extension sees: settings, callbacks, the tables of its remote VAE.

With ``SDNEXT_DIR``, a folder with SD.Next's source, they are SD.Next's own, as far as they are there: the remote
VAE where it lies now or lay in 2025, the remote T5, the settings, the callbacks, and the loading of scripts.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import requests
import torch
from PIL import Image

EXTENSION = Path(__file__).parents[1] / "integrations" / "sdnext" / "scripts" / "hybridge.py"

#: The types of models in SD.Next's tables, as of its revision 058a7f0.
KINDS = ("sd", "sdxl", "f1", "hunyuanvideo", "pixartalpha", "pixartsigma", "hunyuandit", "auraflow", "omnigen")
KINDS = (*KINDS, "h1", "chroma", "zimage", "lumina2")

#: Addresses that do not exist any more.
DEAD = "https://dead.endpoints.huggingface.cloud"


class Options:
    """SD.Next's settings: those that differ from the default are in ``data``."""

    def __init__(self, templates: dict[str, Any]) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels = templates

    def load(self, filename: str) -> None:
        self.data = json.loads(Path(filename).read_text())

    def __getattr__(self, key: str) -> Any:
        return self.data[key] if key in self.data else self.data_labels[key].default

    def add_option(self, key: str, info: SimpleNamespace) -> None:
        self.data_labels[key] = info

    def onchange(self, key: str, func: Callable[[], None], call: bool = True) -> None:
        self.data_labels[key].onchange = func
        if call:
            func()

    def set(self, key: str, value: Any) -> None:
        """What its settings page does."""
        self.data[key] = value
        if self.data_labels[key].onchange is not None:
            self.data_labels[key].onchange()


def option_info(default: Any = None, label: str = "", *, section: Any = None) -> SimpleNamespace:
    return SimpleNamespace(default=default, label=label, section=section, onchange=None)


def _our_remote_vae(shared: ModuleType) -> ModuleType:
    """A module that sends what SD.Next sends."""
    remote = ModuleType("modules.vae.sd_vae_remote")
    remote.hf_decode_endpoints = dict.fromkeys(KINDS, DEAD)
    remote.hf_encode_endpoints = dict.fromkeys([kind for kind in KINDS if kind != "hunyuanvideo"], DEAD)

    def factors() -> dict[str, Any]:
        return {name: shared.sd_model.vae.config.get(name) for name in ("scaling_factor", "shift_factor")}

    def remote_decode(latents: torch.Tensor, width: int = 0, height: int = 0, model_type: str = "") -> Any:
        answers = []
        is_film = model_type == "hunyuanvideo"
        for item in latents[None] if latents.ndim == 3 + is_film else latents:
            sent = item if model_type in ("f1", "chroma") else item[None]
            how = "raw" if is_film else shared.opts.remote_vae_type
            query = {
                "input_tensor_type": "binary",
                "shape": list(sent.shape),
                "dtype": str(sent.dtype).removeprefix("torch."),
                **factors(),
            }
            if how == "raw":
                query |= {"partial_postprocess": False, "output_type": "pt", "output_tensor_type": "binary"}
            else:
                query |= {"image_format": how, "output_type": "pil"}
            if model_type in ("f1", "chroma", "h1", "zimage", "lumina2"):
                query |= {"width": width, "height": height}
            accept = {"raw": "tensor/binary", "png": "image/png", "jpg": "image/jpeg"}[how]
            response = requests.post(
                remote.hf_decode_endpoints[model_type],
                params=query,
                data=sent.contiguous().numpy().tobytes(),
                headers={"Content-Type": "tensor/binary", "Accept": accept},
                timeout=60,
            )
            if not response.ok:
                logging.getLogger("sd").error(response.json())
            elif how == "raw":
                flat = torch.frombuffer(
                    bytearray(response.content), dtype=getattr(torch, response.headers["dtype"])
                )
                answers.append(flat.reshape(json.loads(response.headers["shape"])))
            else:
                answers.append(Image.open(io.BytesIO(response.content)).convert("RGB"))
        return torch.cat(answers) if answers and shared.opts.remote_vae_type == "raw" else answers

    def remote_encode(images: list[Image.Image], model_type: str = "") -> torch.Tensor:
        from diffusers.utils.remote_utils import remote_encode as of_diffusers

        address = remote.hf_encode_endpoints[model_type]
        return torch.cat([of_diffusers(address, image=image, **factors()) for image in images])

    remote.remote_decode, remote.remote_encode = remote_decode, remote_encode
    return remote


class Callbacks(ModuleType):
    """Its ``modules.script_callbacks``, with the three that the extension uses."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self._registered: dict[str, list[Any]] = {}
        for name in ("ui_settings", "app_started", "script_unloaded"):
            registered = self._registered[name] = []
            setattr(self, f"on_{name}", registered.append)
            setattr(self, f"{name}_callback", lambda *given, of=registered: [one(*given) for one in of])

    def clear_callbacks(self) -> None:
        for registered in self._registered.values():
            registered.clear()


def _load_module(path: str) -> ModuleType:
    """As SD.Next does it; the module's name has no meaning."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bytes_of(tensor: torch.Tensor, name: str) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _shown(error: Exception, task: str) -> None:
    """What ``errors.display`` does: SD.Next goes on after errors, so tests fail where this logs one."""
    logging.getLogger("sd").error("%s: %s: %s", task, type(error).__name__, error)


def sdnext_has(name: str) -> bool:
    """Whether a module of SD.Next is in ``SDNEXT_DIR``."""
    folder = os.environ.get("SDNEXT_DIR")
    return bool(folder) and _file_of(folder, name).is_file()


def _file_of(folder: str, name: str) -> Path:
    return Path(folder).joinpath(*name.split(".")).with_suffix(".py")


def _theirs(name: str, patch: pytest.MonkeyPatch | None = None) -> ModuleType:
    """A module of SD.Next's source, which is not installed; with ``patch`` others can import it."""
    spec = importlib.util.spec_from_file_location(name, _file_of(os.environ["SDNEXT_DIR"], name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if patch is not None:
        patch.setitem(sys.modules, name, module)
        setattr(sys.modules["modules"], name.rpartition(".")[2], module)
    spec.loader.exec_module(module)
    return module


def _made(name: str, patch: pytest.MonkeyPatch, **members: Any) -> ModuleType:
    """A module that can be imported."""
    module = ModuleType(name)
    vars(module).update(members)
    patch.setitem(sys.modules, name, module)
    if name.startswith("modules."):
        setattr(sys.modules["modules"], name.rpartition(".")[2], module)
    return module


def _begin(patch: pytest.MonkeyPatch, shared: ModuleType) -> None:
    """What SD.Next's own modules import, besides each other."""
    log = logging.getLogger("sd")
    _made("modules", patch, __path__=[])
    _made("modules.vae", patch, __path__=[])
    cpu = torch.device("cpu")
    _made("modules.devices", patch, dtype=torch.float32, cpu=cpu, device=cpu)
    _made("modules.errors", patch, display=_shown, log=log)
    _made("modules.modelloader", patch, hf_login=lambda: None)
    _made("modules.logger", patch, log=log)
    flags = argparse.Namespace(freeze=False, hide_ui_dir_config=False, config="config.json")
    _made("modules.cmd_args", patch, parse_args=lambda: flags)
    _made(
        "modules.json_helpers",
        patch,
        readfile=lambda name, **_: json.loads(Path(name).read_text()),
        writefile=lambda data, name, **_: Path(name).write_text(json.dumps(data)),
    )
    _made("installer", patch, log=log, setup_logging=lambda: None)
    _made("gradio", patch, Blocks=object)
    _made("fastapi", patch, FastAPI=object)
    patch.setitem(sys.modules, "modules.shared", shared)
    sys.modules["modules"].shared = shared


@contextmanager
def started(
    *, config: dict[str, Any], vae: dict[str, Any] | None = None, is_old: bool = False
) -> Iterator[SimpleNamespace]:
    """SD.Next after its start with the extension, within the ``with`` block.

    Args:
        config: What its config.json holds.
        vae: The configuration of the VAE of the model that is loaded.
        is_old: Whether its remote VAE lies where it lay in 2025.
    """
    shared = ModuleType("modules.shared")
    shared.sd_model = SimpleNamespace(vae=SimpleNamespace(config=vae or {}))
    shared.sd_model.transformer = SimpleNamespace(config=SimpleNamespace(in_channels=16))
    shared.sd_model_type, shared.log = "none", logging.getLogger("sd")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        _begin(patch, shared)
        is_theirs = sdnext_has("modules.options_handler")
        shared.OptionInfo = _theirs("modules.options", patch).OptionInfo if is_theirs else option_info
        options = _theirs("modules.options_handler", patch).Options if is_theirs else Options
        kind, encode = shared.OptionInfo("raw", "Remote VAE image type"), shared.OptionInfo(True, "Remote VAE")
        shared.opts = options({"remote_vae_type": kind, "remote_vae_encode": encode})
        Path(folder, "config.json").write_text(json.dumps(config))
        shared.opts.load(str(Path(folder, "config.json")))
        if sdnext_has("modules.script_callbacks"):
            callbacks = _theirs("modules.script_callbacks", patch)
        else:
            callbacks = Callbacks()
            patch.setitem(sys.modules, callbacks.__name__, callbacks)
            sys.modules["modules"].script_callbacks = callbacks
        name = "modules.sd_vae_remote" if is_old else "modules.vae.sd_vae_remote"
        if is_old:
            patch.delitem(sys.modules, "modules.vae")
        # Later versions of safetensors lack this function, which SD.Next imports from the one that it pins.
        patch.setattr("safetensors.torch._tobytes", _bytes_of, raising=False)
        remote = _theirs(name) if sdnext_has(name) else _our_remote_vae(shared)
        patch.setitem(sys.modules, name, remote)
        is_theirs = sdnext_has("modules.script_loading")
        load = _theirs("modules.script_loading", patch).load_module if is_theirs else _load_module
        load(str(EXTENSION))
        callbacks.ui_settings_callback()
        callbacks.app_started_callback(None, None)
        try:
            yield SimpleNamespace(
                opts=shared.opts, remote=remote, devices=sys.modules["modules.devices"], vae=shared.sd_model.vae
            )
        finally:
            callbacks.script_unloaded_callback()
            callbacks.clear_callbacks()


def remote_t5(devices: ModuleType, prompt: list[str]) -> torch.Tensor:
    """The embeddings that SD.Next's remote T5 returns."""
    if sdnext_has("modules.sd_te_remote"):
        return _theirs("modules.sd_te_remote").get_t5_prompt_embeds(prompt)
    response = requests.post(os.environ["SD_REMOTE_T5"], json=prompt, timeout=60)
    shape = json.loads(response.headers["shape"])
    return torch.frombuffer(bytearray(response.content), dtype=devices.dtype).reshape(shape)
