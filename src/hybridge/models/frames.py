"""How latent frames and frames of a video correspond, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import RequestError


@dataclass(frozen=True, slots=True)
class FrameRule:
    """The frames that f latent frames decode to, and the frames that an encoder takes.

    Attributes:
        kind: ``still``: pictures, without frames.  ``first``: the frame axis has one entry, a picture.  ``causal``:
            the first latent frame is one frame and every other ``factor``: 1 + (f - 1)·factor.  ``each``: every
            latent frame is ``factor`` frames.  ``pairs``: latents are taken two at a time, and an odd one in front
            is a single frame more: f·factor for even f, else 1 + (f - 1)·factor (CogVideoX).
        factor: Frames for a latent frame.
        encodes: ``any``: the encoder takes any number of frames.  ``exact``: only numbers that the rule gives.
            ``drops``: the same, and diffusers drops the frames beyond without a word.
    """

    kind: Literal["still", "first", "causal", "each", "pairs"] = "still"
    factor: int = 1
    encodes: Literal["any", "exact", "drops"] = "exact"

    def __str__(self) -> str:
        """Say how many frames f latent frames are, for tables; "" for pictures."""
        if not self.is_video:
            return ""
        if self.kind == "each":
            return f"{self.factor}·f" if self.factor > 1 else "f"
        causal = f"{self.factor}·f - {self.factor - 1}"
        return f"{causal}, {self.factor}·f if even" if self.kind == "pairs" else causal

    @property
    def is_video(self) -> bool:
        """Whether the model has videos and not pictures."""
        return self.kind not in ("still", "first")

    @property
    def has_axis(self) -> bool:
        """Whether the module's tensors have a frame axis."""
        return self.kind != "still"

    def step(self, *, of_latents: bool) -> int:
        """Return the difference of two possible numbers of frames, or of latent frames, in whole chunks."""
        latents = 2 if self.kind == "pairs" else 1
        return latents if of_latents else latents * self.factor

    def frames_out(self, latent_frames: int) -> int:
        """Return the number of frames that so many latent frames decode to."""
        if not self.is_video:
            return 1
        if self.kind == "each" or (self.kind == "pairs" and latent_frames % 2 == 0):
            return latent_frames * self.factor
        return 1 + (latent_frames - 1) * self.factor

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of so many frames: what an encoder makes, or a decoder had."""
        if not self.is_video:
            return 1
        if self.kind == "each":
            return max(1, -(-frames // self.factor))
        if self.kind == "pairs" and frames % self.factor == 0:
            return max(1, frames // self.factor)
        return 1 + max(0, frames - 1) // self.factor

    def check_latent_frames(self, name: str, latent_frames: int) -> None:
        """Raise :class:`RequestError` for latents of several frames where the model has one."""
        if self.kind == "first" and latent_frames != 1:
            raise RequestError(
                f"{name} decodes pictures",
                saw=f"{latent_frames} latent frames",
                expected="one",
                hint="a request for each, or a model of videos",
            )

    def check_frames(self, name: str, frames: int) -> str | None:
        """Check the number of frames to encode; return a warning for frames that are left out, or None.

        Raises:
            RequestError: for a number that the model cannot have.
        """
        if not self.is_video:
            if frames == 1:
                return None
            raise RequestError(
                f"{name} encodes pictures",
                saw=f"{frames} frames",
                expected="one",
                hint="a model of videos",
                cause="impossible-frames",
            )
        below, above = self.nearest(frames)
        if frames in (below, above) or self.encodes == "any":
            return None
        if self.encodes == "drops" and below:
            return (
                f"the last {frames - below} of {frames} frames were left out, as diffusers leaves them out:"
                f" {name} encodes {self.counts()} frames"
            )
        raise RequestError(
            f"{name} cannot encode a video of this length",
            saw=f"{frames} frame{'' if frames == 1 else 's'}",
            expected=f"{self.counts()} frames",
            hint=" or ".join(f"{count} frames" for count in (below, above) if count),
            cause="impossible-frames",
        )

    def nearest(self, frames: int) -> tuple[int, int]:
        """Return the nearest possible numbers of frames: at most as many (0 for none), and at least as many."""
        possible = {self._encoded(latents) for latents in range(max(1, frames // self.factor + 3))} - {0}
        return max((count for count in possible if count <= frames), default=0), min(
            count for count in possible if count >= frames
        )

    def _encoded(self, latents: int) -> int:
        """The number of frames that become so many latents; 0 where there is none."""
        if latents == 0:
            return 0
        if self.kind == "pairs" and latents % 2 == 0:
            return latents * self.factor
        return self.frames_out(latents)

    def counts(self) -> str:
        """Return the possible numbers of frames as a formula."""
        if self.kind == "pairs":
            return f"{2 * self.factor}·n or {2 * self.factor}·n + 1"
        if self.kind == "each":
            return f"{self.factor}·n" if self.factor > 1 else "any number of"
        return f"{self.factor}·n + 1"


#: Pictures.
STILL = FrameRule()

#: Pictures whose module has a frame axis of one.
FIRST = FrameRule("first")
