"""Limits of one request, checked on the sizes that it declares before memory is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...errors import RequestError, TooLarge
from ...models import ModelSpec, check_inpainting, image_layout, latents_layout
from ...protocol import DecodeRequest, PromptLimits, WireTensor
from ...protocol.media import LONGEST_SIDE

MIB = 1024**2

#: Least speed of a client that sends or reads; slower clients only hold a connection.
SLOWEST_BYTES_PER_S = 4096


class PictureSize(NamedTuple):
    """How many pictures a request is about, and how large each is.

    Attributes:
        batch: Number of pictures or videos.
        height: Height of each, in pixels.
        width: Width of each, in pixels.
        frames: Frames of each video; 1 for a picture.
    """

    batch: int
    height: int
    width: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Pixels of all pictures together."""
        return self.batch * self.frames * self.height * self.width


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits; the defaults suit a machine with 24 GiB.

    Attributes:
        max_body_bytes: Bytes of one request's body.
        max_pixels: Pixels of all pictures of one request: one of 2048×2048, or four of 1024×1024.  The plain
            forward of a full-size VAE in float32 takes about 4 KiB for each pixel.
        max_video_pixels: The same of videos, all frames together: 81 frames of 480×832.
        max_batch: Pictures in one request.
        max_inflight_bytes: Bytes of all bodies that are being received at one time.
        body_pause_s: Seconds without a byte after which receiving is given up.
    """

    max_body_bytes: int = 256 * MIB
    max_pixels: int = 2048 * 2048
    max_video_pixels: int = 32 * 2**20
    max_batch: int = 32
    max_inflight_bytes: int = 1024 * MIB
    body_pause_s: float = 30

    def described(self) -> dict[str, int]:
        """Return what a client can check before it sends anything, for ``/v1/models``."""
        names = ("max_body_bytes", "max_pixels", "max_video_pixels", "max_batch")
        return {name: getattr(self, name) for name in names}

    @property
    def prompts(self) -> PromptLimits:
        """Limits of a request for text embeddings."""
        return PromptLimits(max_prompts=self.max_batch)

    def check_body(self, body_bytes: int) -> None:
        """Raises TooLarge above ``max_body_bytes``."""
        if body_bytes > self.max_body_bytes:
            raise TooLarge(
                "the request body is too large",
                saw=f"more than {self.max_body_bytes} bytes",
                expected=f"at most {self.max_body_bytes}",
                hint="fewer items per request, or a server with a higher --max-body-mib",
            )

    def check_decode(self, request: DecodeRequest, spec: ModelSpec) -> PictureSize:
        """Return the size of the decoded pictures, if it is within the limits."""
        layout = latents_layout(request.latents.shape, spec, request.height, request.width)
        self._check_batch(layout.batch)
        if request.image is not None and request.mask is not None:
            image, mask = request.image, request.mask
            check_inpainting(image.shape, mask.shape, layout, spec, is_bytes=image.dtype == "uint8")
        if request.output == "picture" and layout.batch > 1:
            raise RequestError(
                "one picture file cannot hold a batch",
                saw=f"{layout.batch} latents",
                expected="one",
                hint="a request for each, or output_type=pt with partial_postprocess=True, which returns them all",
            )
        size = PictureSize(layout.batch, *layout.picture, layout.video_frames)
        self._check_size(size, spec)
        if spec.is_video:
            _check_video(request, size)
        if request.output == "video":
            request.video.check_size(size.width, size.height)
        file_format = request.picture_format if request.output == "picture" else ""
        longest = LONGEST_SIDE.get(file_format, self.max_pixels)
        if max(layout.picture) > longest:
            raise TooLarge(
                f"the picture is too long for {file_format}",
                saw=f"{layout.picture[1]}×{layout.picture[0]}",
                expected=f"at most {longest} pixels on a side",
                hint="image_format=png, or output_type=pt",
            )
        return size

    def check_encode(self, image: WireTensor, spec: ModelSpec) -> PictureSize:
        """Return the size of an image tensor, if it is one and within the limits."""
        layout = image_layout(image.shape, spec, is_bytes=image.dtype == "uint8")
        size = PictureSize(layout.batch, layout.height, layout.width, layout.frames)
        self._check_batch(size.batch)
        self._check_size(size, spec)
        return size

    def _check_size(self, size: PictureSize, spec: ModelSpec) -> None:
        saw = f"{size.batch} × {size.width}×{size.height}"
        if not spec.is_video and size.pixels > self.max_pixels:
            raise TooLarge(
                "the pictures are too large",
                saw=f"{saw} = {size.pixels} pixels",
                expected=f"at most {self.max_pixels} pixels in one request",
                hint="a smaller picture or batch, or a server with a higher --max-pixels",
            )
        if spec.is_video and size.pixels > self.max_video_pixels:
            raise TooLarge(
                "the video is too large",
                saw=f"{saw}, {size.frames} frames = {size.pixels} pixels",
                expected=f"at most {self.max_video_pixels} pixels of all frames in one request",
                hint="fewer or smaller frames, or a server with a higher --max-video-pixels",
            )

    def _check_batch(self, batch: int) -> None:
        if batch > self.max_batch:
            raise TooLarge(
                "the batch is too large", saw=batch, expected=f"at most {self.max_batch}", hint="several requests"
            )


def _check_video(request: DecodeRequest, size: PictureSize) -> None:
    """Raises RequestError for a video where the answer can hold a picture, or one video."""
    if request.output == "picture" and size.frames > 1:
        raise RequestError(
            "one picture file cannot hold a video",
            saw=f"{size.frames} frames",
            expected="one",
            hint="output_type=mp4, or output_type=pt for a tensor",
        )
    if request.output != "signed" and size.batch > 1:
        raise RequestError(
            "this answer holds the frames of one video",
            saw=f"{size.batch} videos",
            expected="one",
            hint="a request for each, or output_type=pt without partial_postprocess, which returns them all",
        )
