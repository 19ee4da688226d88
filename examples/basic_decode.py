"""Latents to a picture, on a server: the smallest example.

    python examples/basic_decode.py                                          # offline, with a server of its own
    python examples/basic_decode.py --server http://gpu-box:8000 --model sd-v1

The latents are random, so the picture is too; generate_sd15.py has real ones.
"""

from __future__ import annotations

import numpy as np
import torch
from own_server import options, server

from hybridge import Client, remote_decode


def main() -> None:
    chosen = options("Latents to a picture, on a server.", real_model="sd-v1", output="basic.png")
    latents = torch.randn([1, 4, 64, 64], dtype=torch.float16, generator=torch.Generator().manual_seed(0))

    with server(chosen.server, chosen.model) as url, Client(url) as client:
        # do_scaling: these latents are as a pipeline has them, and the server knows the model's own factors.
        picture = client.decode(latents, model=chosen.model, do_scaling=True)
        factor = next(model["scaling_factor"] for model in client.models() if model["name"] == chosen.model)
        # The same by the function that diffusers has, for scripts that call it already.
        same = remote_decode(
            endpoint=f"{url}/v1/{chosen.model}/decode",
            tensor=latents,
            scaling_factor=factor,
            image_format="png",
        )

    picture.save(chosen.output)
    word = "the same" if np.array_equal(np.asarray(picture), np.asarray(same)) else "another picture"
    print(f"{picture.width}×{picture.height}: {chosen.output}; remote_decode gives {word}")


if __name__ == "__main__":
    main()
