"""The way to a server, measured by decoding there: how soon it answers, how fast bytes go, how fast it decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..estimator.shapes import LATENT_PIXELS, PipelineShape

if TYPE_CHECKING:
    from ...client import Client
    from ...client.served_vaes import ServedModel

#: Sides of the decoded pictures in pixels: one that is nearly nothing, and one that has to be carried.
_SMALL, _LARGE = 64, 512

#: Of each, how many; the fastest is kept, for what is slower was disturbed.
_TRIES = 3

#: Where bytes went too fast to be measured.
_FASTEST_BYTES_PER_S = 10e9


@dataclass(frozen=True, slots=True)
class Link:
    """What a remote decode takes.

    Attributes:
        server: Its address, without secrets.
        model: The model of the server that fits the pipeline.
        latency_s: Of a request with nearly nothing in it, the server's own time taken off.
        bytes_per_s: Both ways together.
        decode_s_per_pixel: The server's own time.
        itemsize: Bytes of a number in the answer.
        own_weights: Whether they are the pipeline's, as far as its config tells.
    """

    server: str
    model: str
    latency_s: float
    bytes_per_s: float
    decode_s_per_pixel: float
    itemsize: int
    own_weights: bool

    def bytes_moved(self, shape: PipelineShape, pixels: int) -> int:
        """Of one decode: half-precision latents there, a picture back."""
        latents = shape.vae.latent_channels * pixels // LATENT_PIXELS**2
        return 2 * latents + 3 * pixels * self.itemsize

    def seconds(self, shape: PipelineShape, pixels: int) -> float:
        """From latents that are done to the picture on this side."""
        moving_s = self.bytes_moved(shape, pixels) / self.bytes_per_s
        return self.latency_s + moving_s + self.decode_s_per_pixel * pixels


def measure(server: str, shape: PipelineShape, *, api_key: str | None = None) -> Link:
    """Decodes a few small latents there.

    Raises:
        ClientError: as :class:`~hybridge.client.Client` has them: ServerUnreachable when nobody is there, Mismatch
            when no model of the server fits the pipeline.
    """
    from ...client import Client

    with Client(server, api_key=api_key) as client:
        model = _fitting(client, shape)
        small, large = (_fastest(client, model.name, shape, side) for side in (_SMALL, _LARGE))
    latency_s = max(0.0, small.seconds - small.server_s)
    moving_s = large.seconds - large.server_s - latency_s
    moved = large.moved - small.moved
    return Link(
        server=client.server,
        model=model.name,
        latency_s=latency_s,
        bytes_per_s=min(_FASTEST_BYTES_PER_S, moved / moving_s if moving_s > 0 else _FASTEST_BYTES_PER_S),
        decode_s_per_pixel=large.server_s / _LARGE**2,
        itemsize=4 if model.dtype == "float32" else 2,
        own_weights=not shape.upcasts or model.config.get("force_upcast") is not False,
    )


@dataclass(frozen=True, slots=True)
class _Decoded:
    seconds: float
    server_s: float
    moved: int


def _fitting(client: Client, shape: PipelineShape) -> ServedModel:
    from ...client.model_matching import Need, choose
    from ...client.served_vaes import read_models
    from ...models import look_up

    row = look_up(shape.family)
    need = Need(
        who=shape.pipeline_class,
        known_from=shape.title,
        kind=row.kind,
        latent_channels=(row.latent_channels,),
        normalisation=row.normalisation,
        spatial_factor=row.spatial_factor,
        family=row.name,
    )
    return choose(need, read_models(client.models(), client.server), None, client.server)[0]


def _fastest(client: Client, model: str, shape: PipelineShape, side: int) -> _Decoded:
    import numpy as np

    from ...client.vae_requests import decode_request

    latents: Any = np.random.default_rng(0).standard_normal(
        (1, shape.vae.latent_channels, side // LATENT_PIXELS, side // LATENT_PIXELS), dtype=np.float32
    )
    request, *_ = decode_request(latents.astype(np.float16), output="signed", do_scaling=True)
    replies = [client.send(request, model=model) for _ in range(_TRIES)]
    best = min(replies, key=lambda reply: reply.seconds)
    return _Decoded(best.seconds, sum(best.timings_ms.values()) / 1000, best.bytes_up + best.bytes_down)
