"""Extension of Stable Diffusion WebUI Forge: its VAE's decode and encode, at a hybridge server.

Forge calls a wrapper in place of its VAE where one is set.  The wrappers here are set on a copy of the VAE for each
picture, as Forge's own extensions do it.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from modules import script_callbacks, scripts, shared

from hybridge import Client
from hybridge.errors import HybridgeError

log = logging.getLogger("hybridge.forge")

#: Flags of Forge's models, and the server's model for each; for others the server infers it.
_MODELS = {"is_sdxl": "sdxl", "is_sd3": "sd3", "is_sd1": "sd-v1", "is_sd2": "sd-v1"}
_WRAPPERS = ("model_vae_decode_wrapper", "model_vae_encode_wrapper")

#: One client for each server; calls share its connections.
client_of = cache(Client)


def wrap(vae: Any, server: str, sd_model: Any) -> Any:
    """Return a copy of Forge's VAE that calls the server, and Forge's own where the server fails.

    Raises:
        HybridgeError: when the server does not answer.
    """
    client = client_of(server)
    served = {one["name"] for one in client.models()}
    names = [name for flag, name in _MODELS.items() if getattr(sd_model, flag, False)]
    model = next((name for name in names if name in served), None)

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
    copy.patcher.model_options = copy.patcher.model_options | dict(zip(_WRAPPERS, (decode, encode), strict=True))
    return copy


class HybridgeVae(scripts.Script):
    """Sets the wrappers before img2img encodes, and again when Forge has made its objects anew."""

    def title(self) -> str:
        return "hybridge"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def process(self, p: Any, *args: Any, **kwargs: Any) -> None:
        objects, server = p.sd_model.forge_objects, shared.opts.data.get("hybridge_server", "").strip()
        options = objects.vae.patcher.model_options
        is_ours = getattr(options.get(_WRAPPERS[0]), "__module__", None) == __name__
        if is_ours and not server:
            objects.vae = objects.vae.clone()
            objects.vae.patcher.model_options = {k: v for k, v in options.items() if k not in _WRAPPERS}
        elif server and ("@" in server or "?" in server or not hasattr(objects.vae, "decode_inner")):
            log.warning("the VAE stays here: no key in the setting, please; and Forge Neo has no wrappers")
        elif server and _WRAPPERS[0] not in options:  # nor another extension's
            try:
                objects.vae = wrap(objects.vae, server, p.sd_model)
            except HybridgeError as error:
                log.warning("the VAE stays here: %s", error)

    process_before_every_sampling = process


name, about = "hybridge_server", "Profile or address of a hybridge server"
info = shared.OptionInfo("", about, section=("hybridge", "hybridge"))
script_callbacks.on_ui_settings(lambda: shared.opts.add_option(name, info))
