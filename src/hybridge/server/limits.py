"""How much a stranger may ask for.  Checked on what was declared, before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError, TooLarge
from ..models import Layout, ModelSpec, latents_layout
from ..protocol import DecodeRequest

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults that a home machine survives.

    Attributes:
        max_body_bytes: Of one request.
        max_pixels: Of all pictures of one request together: one of 4096×4096, or sixteen of 1024×1024.
        max_batch: Pictures in one request.
    """

    max_body_bytes: int = 256 * MIB
    max_pixels: int = 4096 * 4096
    max_batch: int = 32

    def check_body(self, body_bytes: int) -> None:
        """Raises TooLarge above ``max_body_bytes``."""
        if body_bytes > self.max_body_bytes:
            raise TooLarge(
                "the request body is too large",
                saw=f"more than {self.max_body_bytes} bytes",
                expected=f"at most {self.max_body_bytes}",
                hint="fewer items per request, or a server with a higher --max-body-mib",
            )

    def check_decode(self, request: DecodeRequest, spec: ModelSpec) -> Layout:
        """The layout of the latents, if the picture that they ask for is within the limits."""
        layout = latents_layout(request.latents.shape, spec, request.height, request.width)
        self._check_batch(layout.batch)
        if request.output == "picture" and layout.batch > 1:
            raise RequestError(
                "one picture file cannot hold a batch",
                saw=f"{layout.batch} latents",
                expected="one",
                hint="a request for each, or output_type=pt with partial_postprocess=True, which returns them all",
            )
        self._check_pixels(layout.pixels, f"{layout.batch} × {layout.picture[1]}×{layout.picture[0]}")
        return layout

    def check_encode(self, shape: Sequence[int]) -> int:
        """The number of pixels of an image tensor of three channels, if it is within the limits."""
        self._check_batch(shape[0] if len(shape) == 4 else 1)
        pixels = math.prod(shape) // 3
        self._check_pixels(pixels, f"shape {list(shape)}")
        return pixels

    def _check_batch(self, batch: int) -> None:
        if batch > self.max_batch:
            raise TooLarge(
                "the batch is too large", saw=batch, expected=f"at most {self.max_batch}", hint="several requests"
            )

    def _check_pixels(self, pixels: int, saw: str) -> None:
        if pixels > self.max_pixels:
            raise TooLarge(
                "the pictures are too large",
                saw=f"{saw} = {pixels} pixels",
                expected=f"at most {self.max_pixels} pixels in one request",
                hint="a smaller picture or batch, or a server with a higher --max-pixels",
            )
