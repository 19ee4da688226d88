"""How each of diffusers' autoencoder classes is called, where this differs from class to class.

Most classes are called alike; :data:`ADAPTERS` has the others.  The class's own code runs, on a copy of the module
that shares all weights: flags are set on the copy, and a tap in place of its decoder sees the frames of each chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import RequestError, Stopped
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
        timestep: For a decoder that is conditioned on one (LTX-Video 0.9.1 and later); 0 to 1.
        noise_scale: For such a decoder, the part of noise that its latents are mixed with; None for ``timestep``.
        seed: Of that noise, and of noise that a decoder draws itself.
        chunk: Frames that a decoder takes at once whose frames then depend on it; all if None.
        temb: The timestep as the class's ``decode`` takes it, for a call of that; no noise is mixed in then, and
            the decoder draws from torch's own generator.
        image: For a decoder that is shown the picture that was inpainted (AsymmetricAutoencoderKL): (B, 3, H, W).
        mask: With ``image``: (B, 1, H, W), 1 where it was painted anew.
    """

    is_bitwise: bool = True
    on_chunk: OnChunk | None = None
    progress: Progress | None = None
    should_stop: ShouldStop | None = None
    frames: int = 1
    timestep: float = 0.0
    noise_scale: float | None = None
    seed: int = 0
    chunk: int | None = None
    temb: torch.Tensor | None = None
    image: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def _decode(module: Any, z: torch.Tensor, _: Call) -> torch.Tensor:
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
        fold: What becomes of the latents of an encoder, once drawn from the posterior.
        always: Attributes that the module needs for any call.
        at_once: Attributes that make the module compute all at once, where its own call blends tiles.
        why: Why its own call differs from that; "" where they agree.
        finish: For classes that run their decoder chunk by chunk of final frames: what they do to a chunk.
        is_single: Its own code takes no batch: items run one after the other.
        has_frames_in_batch: Its own methods take frames as items, (B · F, C, H, W).
        gives_frames_first: Its own ``decode`` gives (B, F, 3, H, W).
        clear: For layers that hold state, so that two calls must not be under way in one module: clears it.
    """

    decode: Callable[[Any, torch.Tensor, Call], torch.Tensor] = _decode
    encode: Callable[[Any, torch.Tensor], torch.Tensor] = _encode
    fold: Callable[[torch.Tensor], torch.Tensor] | None = None
    always: Mapping[str, Any] = field(default_factory=dict)
    at_once: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    finish: Finish | None = None
    clear: Callable[[Any], None] | None = None
    is_single: bool = False
    has_frames_in_batch: bool = False
    gives_frames_first: bool = False

    def run(self, module: Any, task: Task, source: torch.Tensor, call: Call) -> torch.Tensor:
        """Run the class's own code.

        Raises:
            Stopped: when ``should_stop`` returned True.
        """
        if self.is_single and source.shape[0] > 1:
            return torch.cat([self.run(module, task, item, call) for item in torch.split(source, 1)])
        copied = self._prepared(module, task, call)
        try:
            made = self.decode(copied, source, call) if task == "decode" else self.encode(copied, source)
            made = made.transpose(1, 2) if task == "decode" and self.gives_frames_first else made
        except BaseException:
            if self.clear is not None:
                self.clear(module)
            raise
        if call.on_chunk is not None and task == "decode" and made.numel():
            call.on_chunk(made)
            made = made[:, :, :0]
        return made

    def _prepared(self, module: Any, task: Task, call: Call) -> Any:
        is_tapped = task == "decode" and self.finish is not None
        is_tapped = is_tapped and any((call.on_chunk, call.progress, call.should_stop))
        attributes = self.always if call.is_bitwise else {**self.always, **self.at_once}
        if not is_tapped and not attributes:
            return module
        copied = copy.copy(module)
        copied._modules = dict(module._modules)
        for name, value in attributes.items():
            setattr(copied, name, value)
        if is_tapped and self.finish is not None:
            copied._modules["decoder"] = _Tap(module, call, self.finish, is_reentrant=self.clear is None)
        return copied


class _Tap(nn.Module):
    """Stands in for a decoder and shows what it gives for each chunk."""

    def __init__(self, vae: Any, call: Call, finish: Finish, *, is_reentrant: bool) -> None:
        super().__init__()
        self.inner = vae.decoder  # a part of this module, so that classes find the layers whose state they clear
        self._vae = (vae,)  # in a tuple, so that it is not a part
        self._call = call
        self._finish = finish
        self._is_reentrant = is_reentrant
        self._done = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder on one chunk."""
        (vae,) = self._vae
        made = self.inner(*args, **kwargs)
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


def _clear_magvit(vae: Any) -> None:
    vae._clear_conv_cache()


def mixed_with_noise(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor:
    """Return LTX-Video's latents mixed with noise, for a decoder that is told how much of it there is."""
    scale = call.timestep if call.noise_scale is None else call.noise_scale
    if not scale or call.temb is not None or not vae.config.timestep_conditioning:
        return z
    from diffusers.utils.torch_utils import randn_tensor

    noise = randn_tensor(
        z.shape, generator=torch.Generator("cpu").manual_seed(call.seed), device=z.device, dtype=z.dtype
    )
    # As tensors, because Python's numbers would not be rounded to the latents' dtype first.
    part = torch.tensor(scale, device=z.device, dtype=z.dtype)
    mixed: torch.Tensor = (1 - part) * z + part * noise
    return mixed


def timestep_of(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor | None:
    """Return the timestep that a decoder is conditioned on; None if it is on none."""
    if call.temb is not None or not vae.config.timestep_conditioning:
        return call.temb
    return torch.full((z.shape[0],), call.timestep, device=z.device, dtype=z.dtype)


@contextmanager
def seeded(vae: Any, z: torch.Tensor, call: Call) -> Iterator[None]:
    """Seed torch's own generator for a decoder that draws from it, and set it back."""
    if call.temb is not None or not any(vae.config.decoder_inject_noise):
        yield
        return
    with torch.random.fork_rng([z.device] if z.device.type == "cuda" else []):
        torch.manual_seed(call.seed)
        yield


def _decode_at_time(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor:
    timestep = timestep_of(vae, z, call)
    with seeded(vae, z, call):
        decoded: torch.Tensor = vae.decode(mixed_with_noise(vae, z, call), timestep, return_dict=False)[0]
    return decoded


def _decode_inpainting(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor:
    sample: torch.Tensor = vae.decode(z, image=call.image, mask=call.mask, return_dict=False)[0]
    return sample


def _decode_frames(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor:
    """Stable Video Diffusion: frames in the batch."""
    batch, _channels, frames = z.shape[:3]
    flat = z.transpose(1, 2).flatten(0, 1)
    # Without a number, each video by itself: frames that are decoded together see each other.
    parts = torch.split(flat, call.chunk or frames)
    decoded = torch.cat([vae.decode(part, num_frames=len(part), return_dict=False)[0] for part in parts])
    return decoded.reshape(batch, frames, *decoded.shape[1:]).transpose(1, 2)


def _encode_frames(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    batch, _channels, frames = pixels.shape[:3]
    moments = _encode(vae, pixels.transpose(1, 2).flatten(0, 1))
    return moments.reshape(batch, frames, *moments.shape[1:]).transpose(1, 2)


def _decode_refiner(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor:
    """HunyuanImage's refiner: two frames in the channels of one, of which the first is padding."""
    batch, channels, frames, height, width = z.shape
    z = z.transpose(1, 2).reshape(batch, 2 * frames, channels // 2, height, width).transpose(1, 2)
    return _decode(vae, z[:, :, 1:], call)


def _fold_refiner(z: torch.Tensor) -> torch.Tensor:
    padded = torch.cat((z[:, :, :1], z), 2).transpose(1, 2)
    batch, frames, channels, height, width = padded.shape
    return padded.reshape(batch, frames // 2, 2 * channels, height, width).transpose(1, 2)


# Kandinsky's VAE was trained on pixels / 128 - 1.


def _decode_kandinsky(vae: Any, z: torch.Tensor, call: Call) -> torch.Tensor:
    return _finish_kandinsky(vae, _decode(vae, z, call))


def _finish_kandinsky(_: Any, chunk: torch.Tensor) -> torch.Tensor:
    return ((chunk.float() + 1) * (128 / 127.5) - 1).clamp(-1, 1)


def _encode_kandinsky(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return _encode(vae, (pixels + 1) * (127.5 / 128) - 1)


def _decode_vidtok(vae: Any, z: torch.Tensor, _: Call) -> torch.Tensor:
    decoded: torch.Tensor = vae.decode(z)
    return decoded


def _encode_vidtok(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    if vae.config.regularizer != "kl":
        raise RequestError(
            "this VidTok's latents are codes", saw=f"regularizer {vae.config.regularizer}", expected="kl"
        )
    if vae.is_causal:  # its `forward` pads, and its `encode` drops frames without that
        first = pixels[:, :, :1].expand(-1, -1, vae.temporal_compression_ratio - 1, -1, -1)
        pixels = torch.cat((first, pixels), 2)
    moments: torch.Tensor = vae.encode(pixels).latent_dist.parameters
    return moments


_PLAIN = Adapter()

#: By class, where it is not called as most are.
ADAPTERS: dict[str, Adapter] = {
    "AsymmetricAutoencoderKL": Adapter(_decode_inpainting),
    "AutoencoderKLWan": Adapter(finish=_finish_wan),
    "AutoencoderKLHunyuanVideo": Adapter(
        at_once={"use_framewise_decoding": False, "use_framewise_encoding": False},
        why="the class's own call blends tiles of 5 latent frames, each with statistics of its own",
    ),
    "AutoencoderKLLTXVideo": Adapter(_decode_at_time),
    "AutoencoderKLLTX2Video": Adapter(_decode_at_time),
    "AutoencoderKLCogVideoX": Adapter(finish=_as_it_is),
    "AutoencoderKLAllegro": Adapter(always={"use_tiling": True}, is_single=True, gives_frames_first=True),
    "AutoencoderKLHunyuanVideo15": Adapter(is_single=True),  # its mask of attention has one head for each item
    "AutoencoderKLMagvit": Adapter(finish=_as_it_is, clear=_clear_magvit),
    "AutoencoderKLTemporalDecoder": Adapter(_decode_frames, _encode_frames, has_frames_in_batch=True),
    "AutoencoderKLHunyuanImageRefiner": Adapter(_decode_refiner, fold=_fold_refiner),
    "Kandinsky6SRVAE": Adapter(_decode_kandinsky, _encode_kandinsky),
    "AutoencoderTAEHV": Adapter(finish=_as_it_is),
    "AutoencoderVidTok": Adapter(_decode_vidtok, _encode_vidtok),
}


def adapter_of(module: Any) -> Adapter:
    """Return how to call this module, by its class or the class that it is derived from."""
    return next((ADAPTERS[base.__name__] for base in type(module).__mro__ if base.__name__ in ADAPTERS), _PLAIN)
