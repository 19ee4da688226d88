"""A picture from Stable Diffusion v1.5, whose VAE runs on a server.

    python examples/generate_sd15.py                                        # small and random, with its own server
    python examples/generate_sd15.py --real --server http://gpu-box:8000    # the real one

The real one loads no VAE here; `hybridge serve sd-v1` on the other machine has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import small_pipelines
import torch
from diffusers import StableDiffusionPipeline
from own_server import server

import hybridge


def load(real: bool) -> Any:
    if not real:
        return small_pipelines.stable_diffusion(vae=None)
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return StableDiffusionPipeline.from_pretrained(repository, vae=None, torch_dtype=dtype).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture from Stable Diffusion v1.5, whose VAE is on a server.")
    parser.add_argument("--real", action="store_true", help="the real model from the hub")
    parser.add_argument("--server", help="a server's URL; without it, one is started here")
    parser.add_argument("--prompt", default="a lighthouse in a storm, oil on canvas")
    parser.add_argument("-o", "--output", type=Path, default=Path("sd15.png"))
    options = parser.parse_args()

    vae = None if options.real else small_pipelines.vae()
    with server(options.server, "sd-v1", vae) as url:
        pipe = load(options.real)

        with hybridge.connect(pipe, url) as connection:
            print(connection)
            side, steps = (512, 25) if options.real else (64, 2)
            generator = torch.Generator().manual_seed(0)
            picture = pipe(
                options.prompt, height=side, width=side, num_inference_steps=steps, generator=generator
            ).images[0]

    picture.save(options.output)
    print(f"{picture.width}×{picture.height}: {options.output}")


if __name__ == "__main__":
    main()
