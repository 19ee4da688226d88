"""How each of diffusers' autoencoder classes is called, where this differs from class to class.

Most classes are called alike; :data:`ADAPTERS` has the others.  The class's own code runs, on a copy of the module
that shares all weights: flags are set on the copy, and a tap in place of its decoder sees the frames of each chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import Stopped
from .execution.executor import Progress, ShouldStop
from .program.program import Task

#: Called with uint8 (f, H, W, 3) on the CPU, in order.
OnFrames = Callable[[torch.Tensor], None]

#: Called with a part of the result (B, 3, f, H, W), in order.
OnChunk = Callable[[torch.Tensor], None]

#: What a decoder gives for one chunk → what becomes of it in the result.
Finish = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Call:
    """How one call of a module's own code is to be made.

    Attributes:
        is_bitwise: The class's own call with its defaults, instead of all at once.
        on_chunk: Takes the frames as they are made; then the result has no frames.
        progress: Called with (frames done, frames in total) between chunks.
        should_stop: Called between chunks; True ends the call.
        frames: Frames of the result, for ``progress``.
    """

    is_bitwise: bool = True
    on_chunk: OnChunk | None = None
    progress: Progress | None = None
    should_stop: ShouldStop | None = None
    frames: int = 1


def _decode(module: Any, z: torch.Tensor) -> torch.Tensor:
    sample: torch.Tensor = module.decode(z, return_dict=False)[0]
    return sample


def _encode(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    encoded = module.encode(pixels, return_dict=False)[0]
    found: torch.Tensor = encoded if isinstance(encoded, torch.Tensor) else encoded.parameters
    return found


@dataclass(frozen=True, slots=True)
class Adapter:
    """How the modules of a class are called.

    Attributes:
        decode: The module and its input → (B, 3, H, W) or (B, 3, F, H, W).
        encode: The module and pixels → the posterior's moments, or latents where there is no posterior.
        at_once: Attributes that make the module compute all at once, where its own call blends tiles.
        why: Why its own call differs from that; "" where they agree.
        finish: For classes that run their decoder chunk by chunk of final frames: what they do to a chunk.
        is_reentrant: Whether two calls may be under way in the same module: False where layers hold state.
    """

    decode: Callable[[Any, torch.Tensor], torch.Tensor] = _decode
    encode: Callable[[Any, torch.Tensor], torch.Tensor] = _encode
    at_once: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    finish: Finish | None = None
    is_reentrant: bool = True

    def run(self, module: Any, task: Task, source: torch.Tensor, call: Call) -> torch.Tensor:
        """Run the class's own code.

        Raises:
            Stopped: when ``should_stop`` returned True.
        """
        copied = self._prepared(module, task, call)
        made = (self.decode if task == "decode" else self.encode)(copied, source)
        if call.on_chunk is not None and task == "decode" and made.numel():
            call.on_chunk(made)
            made = made[:, :, :0]
        return made

    def _prepared(self, module: Any, task: Task, call: Call) -> Any:
        is_tapped = task == "decode" and self.finish is not None
        is_tapped = is_tapped and any((call.on_chunk, call.progress, call.should_stop))
        if not is_tapped and (call.is_bitwise or not self.at_once):
            return module
        copied = copy.copy(module)
        copied._modules = dict(module._modules)
        if not call.is_bitwise:
            for name, value in self.at_once.items():
                setattr(copied, name, value)
        if is_tapped and self.finish is not None:
            copied._modules["decoder"] = _Tap(module, call, self.finish, is_reentrant=self.is_reentrant)
        return copied


class _Tap(nn.Module):
    """Stands in for a decoder and shows what it gives for each chunk."""

    def __init__(self, vae: Any, call: Call, finish: Finish, *, is_reentrant: bool) -> None:
        super().__init__()
        self._vae = (vae,)  # in a tuple, so that it is not a part of this module
        self._call = call
        self._finish = finish
        self._is_reentrant = is_reentrant
        self._done = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder on one chunk."""
        (vae,) = self._vae
        made = vae.decoder(*args, **kwargs)
        chunk = made[0] if isinstance(made, tuple) else made
        call = self._call
        self._done += chunk.shape[2]
        if call.on_chunk is not None:
            call.on_chunk(self._finish(vae, chunk))
            chunk = chunk[:, :, :0]
        if call.progress is not None and self._is_reentrant:
            call.progress(min(self._done, call.frames), call.frames)
        if call.should_stop is not None and call.should_stop():
            raise Stopped("decoding was stopped", saw=f"{self._done} of {call.frames} frames made")
        return (chunk, *made[1:]) if isinstance(made, tuple) else chunk


def _as_it_is(_: Any, chunk: torch.Tensor) -> torch.Tensor:
    return chunk


def _finish_wan(vae: Any, chunk: torch.Tensor) -> torch.Tensor:
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    side = vae.config.get("patch_size")
    return (chunk if side is None else unpatchify(chunk, patch_size=side)).clamp(-1.0, 1.0)


_PLAIN = Adapter()

#: By class, where it is not called as most are.
ADAPTERS: dict[str, Adapter] = {
    "AutoencoderKLWan": Adapter(finish=_finish_wan),
}


def adapter_of(module: Any) -> Adapter:
    """Return how to call this module, by its class or the class that it is derived from."""
    return next((ADAPTERS[base.__name__] for base in type(module).__mro__ if base.__name__ in ADAPTERS), _PLAIN)
