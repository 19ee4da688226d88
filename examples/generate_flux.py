"""A picture from FLUX.1 schnell, whose VAE runs on a server.

    python examples/generate_flux.py                                        # small and random, with its own server
    python examples/generate_flux.py --real --server http://gpu-box:8000    # the real one

Flux keeps its latents packed, 2×2 to a token; its pipeline unpacks them before it asks the VAE, so that nothing is
different from Stable Diffusion here.  `hybridge serve flux` on the other machine has the VAE.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import small_pipelines
import torch
from diffusers import FluxPipeline
from own_server import server

import hybridge


def load(real: bool) -> Any:
    if not real:
        return small_pipelines.flux(vae=None)
    repository = "black-forest-labs/FLUX.1-schnell"
    pipe = FluxPipeline.from_pretrained(repository, vae=None, torch_dtype=torch.bfloat16)
    if torch.cuda.is_available():
        pipe.enable_model_cpu_offload()
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture from FLUX.1 schnell, whose VAE is on a server.")
    parser.add_argument("--real", action="store_true", help="the real model from the hub")
    parser.add_argument("--server", help="a server's URL; without it, one is started here")
    parser.add_argument("--prompt", default="a lighthouse in a storm, oil on canvas")
    parser.add_argument("-o", "--output", type=Path, default=Path("flux.png"))
    options = parser.parse_args()

    vae = None if options.real else small_pipelines.vae(16, scaling_factor=0.3611, shift_factor=0.1159)
    with server(options.server, "flux", vae) as url:
        pipe = load(options.real)

        with hybridge.connect(pipe, url) as connection:
            print(connection)
            side, steps = (1024, 4) if options.real else (64, 2)
            picture = pipe(
                options.prompt,
                height=side,
                width=side,
                num_inference_steps=steps,
                guidance_scale=0.0,  # schnell was distilled to need none
                generator=torch.Generator().manual_seed(0),
            ).images[0]

    picture.save(options.output)
    print(f"{picture.width}×{picture.height}: {options.output}")


if __name__ == "__main__":
    main()
