"""A picture from Stable Diffusion v1.5, whose VAE runs on a server.

    python examples/generate_sd15.py                                        # the starter, with its own server
    python examples/generate_sd15.py --real --server http://gpu-box:8000    # the real one

The real one loads no VAE here; `hybridge serve sd-v1` on the other machine has it.
The starter is a tiny Stable Diffusion that hybridge ships; it draws coloured shapes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from own_server import STARTER, server

import hybridge


def load(real: bool) -> Any:
    if not real:
        return StableDiffusionPipeline.from_pretrained(STARTER, vae=None, dtype=torch.float32)
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return StableDiffusionPipeline.from_pretrained(repository, vae=None, torch_dtype=dtype).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture from Stable Diffusion v1.5, whose VAE is on a server.")
    parser.add_argument("--real", action="store_true", help="the real model from the hub")
    parser.add_argument("--server", help="a server's URL; without it, one is started here")
    parser.add_argument("--prompt", help="of the starter: a red circle above a blue square at night")
    parser.add_argument("-o", "--output", type=Path, default=Path("sd15.png"))
    options = parser.parse_args()

    model = "sd-v1" if options.real else "starter"
    prompts = {"sd-v1": "a lighthouse in a storm, oil on canvas", "starter": "a white ring left of a red triangle"}
    with server(options.server, model) as url:
        pipe = load(options.real)

        with hybridge.connect(pipe, url, model=model) as connection:
            print(connection)
            picture = pipe(
                options.prompt or prompts[model],
                num_inference_steps=25,
                guidance_scale=7.5 if options.real else 3,
                generator=torch.Generator().manual_seed(0),
            ).images[0]

    picture.save(options.output)
    print(f"{picture.width}×{picture.height}: {options.output}")


if __name__ == "__main__":
    main()
