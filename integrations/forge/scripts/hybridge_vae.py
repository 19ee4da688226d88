"""Extension of Stable Diffusion WebUI Forge: wrappers of its VAE that decode and encode at a hybridge server."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from modules import script_callbacks, scripts, shared

from hybridge import Client
from hybridge.client.profiles import addresses_of
from hybridge.errors import ClientError, HybridgeError

log = logging.getLogger("hybridge.forge")
#: Flags of Forge's models, and the server's model for each; for others the server infers it.
_MODELS = {"is_sdxl": "sdxl", "is_sd3": "sd3", "is_sd1": "sd-v1", "is_sd2": "sd-v1"}
_DECODE, _ENCODE = "model_vae_decode_wrapper", "model_vae_encode_wrapper"
_SETTING = "hybridge_server"  # also in the options of the VAE, beside the wrappers: which server they call
client_of = lru_cache(maxsize=1)(lambda server, key: Client(server))  # whose connections calls share


def key_of(server: str) -> int:
    """Return what changes with a server's addresses, certificate and key, which a profile may get anew."""
    return hash((server, *addresses_of(server)))


def wrap(vae: Any, server: str, sd_model: Any) -> Any:
    """Return a copy of Forge's VAE that calls the server, and Forge's own where the server fails.

    Raises:
        HybridgeError: when the server does not answer, the setting has a key, or this Forge calls no wrappers.
    """
    if any(part in server for part in ("@", "?", "/k/")):
        raise ClientError("no key in the setting, but in a profile")
    if _DECODE not in type(vae).decode.__code__.co_consts:
        raise ClientError("this Forge calls no wrappers, as Forge Neo and reForge")
    client = client_of(server, key := key_of(server))
    served = {one.get("name") for one in client.models()}
    model = next((name for flag, name in _MODELS.items() if getattr(sd_model, flag, 0) and name in served), None)

    def decode(inner: Any, samples: torch.Tensor) -> torch.Tensor:
        """Return pictures (B, H, W, 3) in [0, 1] of latents in VAE space."""
        try:
            pictures = client.decode(samples, model=model, do_scaling=False, output="unit")
        except HybridgeError as error:
            log.warning("decoded here: %s", error)
            return inner(samples)
        return pictures.float().movedim(1, -1).to(vae.output_device)

    def encode(inner: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Return latents in VAE space of pictures (B, H, W, 3) in [0, 1]: a sample, as Forge draws one."""
        if "model_vae_regulation" in copy.patcher.model_options:  # another extension wants the posterior
            return inner(pixels)
        scaled = pixels[..., :3] * 255
        image = scaled.round().to(torch.uint8)
        if (scaled - image).abs().max() > 0.01:
            image = pixels[..., :3].movedim(-1, 1)
        seed = int(torch.randint(2**62, ()))
        try:
            latents = client.encode(image, model=model, value_range="unit", sample=True, seed=seed)
        except HybridgeError as error:
            log.warning("encoded here: %s", error)
            return inner(pixels)
        return latents.float().to(vae.output_device)

    copy = vae.clone()
    copy.patcher.model_options = {**copy.patcher.model_options, _DECODE: decode, _ENCODE: encode, _SETTING: key}
    return copy


class HybridgeVae(scripts.Script):
    """Sets the wrappers before img2img encodes, and again when Forge has made its objects anew."""

    def title(self) -> str:
        return "hybridge"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def process(self, p: Any, *args: Any, **kwargs: Any) -> None:
        objects, server = p.sd_model.forge_objects, shared.opts.data.get(_SETTING, "").strip()
        options = objects.vae.patcher.model_options
        try:
            if _SETTING in options and (not server or options[_SETTING] != key_of(server)):  # it has changed
                options = {name: options[name] for name in options if name not in (_DECODE, _ENCODE, _SETTING)}
                objects.vae = objects.vae.clone()
                objects.vae.patcher.model_options = options
            if server and _DECODE not in options:  # nor another extension's
                objects.vae = wrap(objects.vae, server, p.sd_model)
        except HybridgeError as error:
            log.warning("the VAE stays here: %s", error)

    process_before_every_sampling = process


info = shared.OptionInfo("", "Profile or address of a hybridge server", section=("hybridge", "hybridge"))
script_callbacks.on_ui_settings(lambda: shared.opts.add_option(_SETTING, info))
