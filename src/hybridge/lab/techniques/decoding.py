"""What a pipeline's VAE is asked for, and what its own decoder then does: the proof of what changes a VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .evidence import watching
from .pipeline_context import PipelineContext
from .technique import Proof, Watch


class DecodeLog:
    """Decodes of a pipeline's VAE while it is on.

    ``decode`` is no forward, so no hook sees it: it is wrapped in the instance.

    Attributes:
        vae: The VAE, as it was when the watching began.
        asked: Shapes of the latents that ``decode`` was given.
        given: Shapes of what the decoder inside of the VAE was given; less or more often than asked, or never.
        dtypes: Of that.
        finite: Whether everything that came out of the decoder is a number.
        strips: How many strips an exact VAE has made.  Its decoder gets no hook, with which it would run plain.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.strips = 0
        self.asked: list[tuple[int, ...]] = []
        self.given: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []
        self.finite = True
        self._hook: Any = None

    def __enter__(self) -> DecodeLog:
        self._former = vars(self.vae).get("decode")
        decode, is_exact = self.vae.decode, hasattr(self.vae, "why_plain")

        def noted(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.asked.append(tuple(z.shape))
            return decode(z, *args, **kwargs, **({"progress": self._count} if is_exact else {}))

        self.vae.decode = noted
        decoder = None if is_exact else getattr(self.vae, "decoder", None)
        if isinstance(decoder, torch.nn.Module):
            self._hook = decoder.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._former is None:
            del self.vae.decode
        else:
            self.vae.decode = self._former
        if self._hook is not None:
            self._hook.remove()

    def _count(self, done: int, total: int) -> None:
        self.strips += 1

    def _note(self, _module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.given.append(tuple(args[0].shape))
        self.dtypes.append(args[0].dtype)
        self.finite = self.finite and bool(torch.isfinite(output).all())


def decoded(context: PipelineContext, judge: Callable[[DecodeLog], Proof]) -> Watch:
    """A witness that watches the VAE which the pipeline has when the watching begins.

    Args:
        context: Whose VAE.
        judge: From what was seen to the proof.
    """
    return watching(judge, lambda: DecodeLog(context.pipe.vae))
