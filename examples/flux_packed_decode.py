"""Packed latents to a picture: Flux's pipelines fold 2×2 latents into one token.

    python examples/flux_packed_decode.py                                    # offline: the starter's, packed
    python examples/flux_packed_decode.py --real --server http://gpu-box:8000    # 1024×1024, by flux

A packed tensor does not say how wide its picture is, so height and width go along.
"""

from __future__ import annotations

import torch
from own_server import PHOTOGRAPH, options, server

from hybridge import Client


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) → (B, h/2 · w/2, 4C), as Flux's pipelines do."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def main() -> None:
    chosen = options("Packed latents to a picture.", real_model="flux", output="packed.png")
    with server(chosen.server, chosen.model) as url, Client(url) as client:
        if chosen.real:
            height, width = 1024, 1024
            tokens = torch.randn([1, 4096, 64], dtype=torch.float16, generator=torch.Generator().manual_seed(0))
        else:
            latents = client.encode(PHOTOGRAPH, model=chosen.model, do_scaling=True)
            height, width = latents.shape[2] * 8, latents.shape[3] * 8
            tokens = pack(latents)
        # For Flux the factors are 0.3611 and 0.1159; do_scaling takes whatever the model has.
        picture = client.decode(tokens, model=chosen.model, height=height, width=width, do_scaling=True)

    picture.save(chosen.output)
    print(f"{list(tokens.shape)} → {picture.width}×{picture.height}: {chosen.output}")


if __name__ == "__main__":
    main()
