"""As much of SD.Next as its extension sees: settings, callbacks, the tables of its remote VAE.

With ``SDNEXT_DIR`` the remote VAE and the remote T5 are SD.Next's own, loaded from its source.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import sys
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

    def __init__(self, **data: Any) -> None:
        self.data: dict[str, Any] = data
        self.data_labels: dict[str, SimpleNamespace] = {}
        self.remote_vae_type = "raw"
        self.remote_vae_encode = True

    def add_option(self, key: str, info: SimpleNamespace) -> None:
        self.data_labels[key] = info

    def onchange(self, key: str, func: Callable[[], None], call: bool = True) -> None:
        self.data_labels[key].onchange = func
        if call:
            func()

    def set(self, key: str, value: Any) -> None:
        """What its settings page does."""
        self.data[key] = value
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
        for item in latents[None] if latents.ndim == 3 else latents:
            sent = item if model_type in ("f1", "chroma") else item[None]
            how = shared.opts.remote_vae_type
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


def _bytes_of(tensor: torch.Tensor, name: str) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _theirs(folder: Path, name: str) -> ModuleType:
    """A module of SD.Next's source, which is not installed."""
    spec = importlib.util.spec_from_file_location(name, folder.joinpath(*name.split(".")).with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    shared.opts, shared.OptionInfo = Options(**config), option_info
    shared.sd_model = SimpleNamespace(vae=SimpleNamespace(config=vae or {}))
    shared.sd_model_type = "none"
    callbacks: dict[str, list[Any]] = {"ui_settings": [], "app_started": [], "script_unloaded": []}
    script_callbacks = ModuleType("modules.script_callbacks")
    for name, registered in callbacks.items():
        setattr(script_callbacks, f"on_{name}", registered.append)
    devices = ModuleType("modules.devices")
    devices.dtype, devices.cpu, devices.device = torch.float32, torch.device("cpu"), torch.device("cpu")
    errors, modelloader = ModuleType("modules.errors"), ModuleType("modules.modelloader")
    errors.display, modelloader.hf_login = lambda *_: None, lambda: None
    logger = ModuleType("modules.logger")
    logger.log = shared.log = logging.getLogger("sd")
    package, vae_package = ModuleType("modules"), ModuleType("modules.vae")
    package.__path__, vae_package.__path__ = [], []
    package.shared, package.script_callbacks, package.devices = shared, script_callbacks, devices
    package.errors, package.modelloader = errors, modelloader
    there = [package, shared, script_callbacks, devices, errors, modelloader, logger]
    if not is_old:
        there.append(vae_package)
    with pytest.MonkeyPatch.context() as patch:
        for module in there:
            patch.setitem(sys.modules, module.__name__, module)
        name = "modules.sd_vae_remote" if is_old else "modules.vae.sd_vae_remote"
        folder = os.environ.get("SDNEXT_DIR")
        if folder:
            # Later versions of safetensors lack this function, which SD.Next imports from the one that it pins.
            patch.setattr("safetensors.torch._tobytes", _bytes_of, raising=False)
        remote = _theirs(Path(folder), name) if folder and not is_old else _our_remote_vae(shared)
        patch.setitem(sys.modules, name, remote)
        # As SD.Next does it; the module's name has no meaning.
        spec = importlib.util.spec_from_file_location("hybridge.py", EXTENSION)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        for one in callbacks["ui_settings"]:
            one()
        for one in callbacks["app_started"]:
            one(None, None)
        try:
            yield SimpleNamespace(opts=shared.opts, remote=remote, devices=devices)
        finally:
            for one in callbacks["script_unloaded"]:
                one()


def remote_t5(devices: ModuleType, prompt: list[str]) -> torch.Tensor:
    """The embeddings that SD.Next's remote T5 returns."""
    folder = os.environ.get("SDNEXT_DIR")
    if folder:
        return _theirs(Path(folder), "modules.sd_te_remote").get_t5_prompt_embeds(prompt)
    response = requests.post(os.environ["SD_REMOTE_T5"], json=prompt, timeout=60)
    shape = json.loads(response.headers["shape"])
    return torch.frombuffer(bytearray(response.content), dtype=devices.dtype).reshape(shape)
