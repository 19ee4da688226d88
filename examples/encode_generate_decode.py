"""A photograph to latents, changed there, and back: image to image with the VAE on a server.

    python examples/encode_generate_decode.py                                # offline: a mirror for a generator
    python examples/encode_generate_decode.py --real --server http://gpu-box:8000

With --real the generator is Stable Diffusion v1.5 without a VAE, as in diffusers' documentation.
"""

from __future__ import annotations

from typing import Any

import torch
from own_server import PHOTOGRAPH, options, server
from PIL import Image

from hybridge import Client

PROMPT = "A fantasy landscape, trending on artstation"


def mirrored(latents: torch.Tensor) -> torch.Tensor:
    """A replacement for a generator: the left half of the latents and its mirror image."""
    left = latents[..., : latents.shape[-1] // 2]
    return torch.cat([left, left.flip(-1)], dim=-1)


def imagined(latents: torch.Tensor) -> Any:
    """What Stable Diffusion makes of it."""
    from diffusers import StableDiffusionImg2ImgPipeline

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", torch_dtype=dtype, vae=None
    ).to(device)
    return pipe(prompt=PROMPT, image=latents.to(device, dtype), strength=0.75, output_type="latent").images


def main() -> None:
    chosen = options("Image to image with the VAE on a server.", real_model="sd-v1", output="landscape.png")
    with Image.open(PHOTOGRAPH) as photograph:
        picture = photograph.convert("RGB").resize((768, 512) if chosen.real else (384, 256))

    with server(chosen.server, chosen.model) as url, Client(url) as client:
        latents = client.encode(picture, model=chosen.model, do_scaling=True)
        changed = imagined(latents) if chosen.real else mirrored(latents)
        result = client.decode(changed, model=chosen.model, do_scaling=True)

    result.save(chosen.output)
    print(f"{list(latents.shape)} latents, {result.width}×{result.height}: {chosen.output}")


if __name__ == "__main__":
    main()
