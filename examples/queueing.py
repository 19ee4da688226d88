"""Six prompts, and a queue: while one picture is decoded, the next is generated.

    python examples/queueing.py                                              # offline: a stand-in for a generator
    python examples/queueing.py --real --server http://gpu-box:8000

diffusers' documentation uses a thread, a queue.Queue and a sentinel; here `client.decode_queue` does that.
In a notebook, `callback=lambda finished: display(finished.result())` shows each picture as it comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from own_server import PHOTOGRAPH, options, server

from hybridge import Client

PROMPTS = [
    "Blueberry ice cream, in a stylish modern glass , ice cubes, nuts, mint leaves, splashing milk cream, in a"
    " gradient purple background, fluid motion, dynamic movement, cinematic lighting, Mysterious",
    "Lemonade in a glass, mint leaves, in an aqua and white background, flowers, ice cubes, halo, fluid motion,"
    " dynamic movement, soft lighting, digital painting, rule of thirds composition, Art by Greg rutkowski, Coby"
    " whitmore",
    "Comic book art, beautiful, vintage, pastel neon colors, extremely detailed pupils, delicate features, light on"
    " face, slight smile, Artgerm, Mary Blair, Edmund Dulac, long dark locks, bangs, glowing, fashionable style,"
    " fairytale ambience, hot pink.",
    "Masterpiece, vanilla cone ice cream garnished with chocolate syrup, crushed nuts, choco flakes, in a brown"
    " background, gold, cinematic lighting, Art by WLOP",
    "A bowl of milk, falling cornflakes, berries, blueberries, in a white background, soft lighting, intricate"
    " details, rule of thirds, octane render, volumetric lighting",
    "Cold Coffee with cream, crushed almonds, in a glass, choco flakes, ice cubes, wet, in a wooden background,"
    " cinematic lighting, hyper realistic painting, art by Carne Griffiths, octane render, volumetric lighting,"
    " fluid motion, dynamic movement, muted colors,",
]

Generate = Callable[[str], torch.Tensor]


def stand_in(client: Client, model: str) -> Generate:
    """Six quarters of a photograph, turned: something to tell apart, without a diffusion model."""
    latents = client.encode(PHOTOGRAPH, model=model, do_scaling=True)
    quarter = latents[..., : latents.shape[-2] // 2, : latents.shape[-1] // 2]

    def generate(prompt: str) -> torch.Tensor:
        number = PROMPTS.index(prompt)
        turned = quarter.rot90(number, dims=(-2, -1))
        return turned.flip(-1) if number > 3 else turned

    return generate


def dreamshaper() -> Generate:
    """The text's pipeline, which needs a GPU for speed."""
    from diffusers import StableDiffusionPipeline

    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = StableDiffusionPipeline.from_pretrained("Lykon/dreamshaper-8", torch_dtype=dtype, vae=None).to(device)
    if device == "cuda":
        pipe.unet = pipe.unet.to(memory_format=torch.channels_last)
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
        pipe(prompt=PROMPTS[0], output_type="latent")  # compiles
    return lambda prompt: pipe(prompt=prompt, output_type="latent").images


def main() -> None:
    chosen = options("Six prompts, and a queue.", real_model="sd-v1", output="queue")
    chosen.output.mkdir(parents=True, exist_ok=True)
    with server(chosen.server, chosen.model) as url, Client(url) as client:
        generate = dreamshaper() if chosen.real else stand_in(client, chosen.model)
        with client.decode_queue(
            model=chosen.model, do_scaling=True, limit=4, progress=True, total=len(PROMPTS)
        ) as queue:
            for prompt in PROMPTS:
                queue.put(generate(prompt), tag=prompt)
        for finished in queue:
            path = chosen.output / f"{finished.index}.jpg"
            finished.result().save(path)
            print(f"{path}: {finished.tag.partition(',')[0]}")


if __name__ == "__main__":
    main()
