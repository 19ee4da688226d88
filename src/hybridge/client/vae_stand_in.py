"""What a remote VAE has in common with the diffusers class that it stands in for: attributes, buffers, arguments.

Pipelines read more of a VAE than its config: ratios, buffers with statistics, the order of arguments of ``decode``,
the axes of what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from ..errors import Mismatch, RequestError


@dataclass(frozen=True, slots=True)
class Interface:
    """How the methods of a class differ from those of most classes.

    Attributes:
        arguments: Names of the positional arguments of ``decode`` after the latents.
        has_frames_in_batch: It takes and gives (B·F, C, h, w), and ``decode`` a number of frames.
        gives_frames_first: ``decode`` gives (B, F, 3, H, W).
        has_identity: ``encode`` gives a distribution that has one value (Cosmos).
        folds: ``decode`` takes one latent frame of the two that pipelines have in the channels of one, of which the
            other is padding (HunyuanImage's refiner).
        divisor: Of bytes, from which it subtracts 1: its pipeline converts pixels to this range and back, as the
            server does (Kandinsky's super-resolution).
        inpaints: ``decode`` can be shown the picture that was inpainted, and the mask.
    """

    arguments: tuple[str, ...] = ("return_dict", "generator")
    has_frames_in_batch: bool = False
    gives_frames_first: bool = False
    has_identity: bool = False
    folds: bool = False
    divisor: float = 127.5
    inpaints: bool = False

    def to_pixels(self, own: torch.Tensor) -> torch.Tensor:
        """Return pixels in the range of the class in [-1, 1]."""
        return own if self.divisor == _USUAL.divisor else (own.float() + 1) * (self.divisor / _USUAL.divisor) - 1

    def from_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Undo :meth:`to_pixels`."""
        if self.divisor == _USUAL.divisor:
            return pixels
        return (pixels.float() + 1) * (_USUAL.divisor / self.divisor) - 1


_USUAL = Interface()
_INTERFACES: Mapping[str, Interface] = {
    "AsymmetricAutoencoderKL": Interface(("generator", "image", "mask", "return_dict"), inpaints=True),
    "AutoencoderKLAllegro": Interface(gives_frames_first=True),
    "AutoencoderKLCosmos": Interface(has_identity=True),
    "AutoencoderKLHunyuanImageRefiner": Interface(folds=True),
    "AutoencoderKLLTX2Video": Interface(("temb", "causal", "return_dict")),
    "AutoencoderKLLTXVideo": Interface(("temb", "return_dict")),
    "AutoencoderKLTemporalDecoder": Interface(("num_frames", "return_dict"), has_frames_in_batch=True),
    "Kandinsky6SRVAE": Interface(divisor=128.0),
}

#: Buffers that pipelines read.
_STATISTICS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")


def interface_of(class_name: str) -> Interface:
    """Return how the methods of a diffusers class are called."""
    return _INTERFACES.get(class_name, _USUAL)


@dataclass(frozen=True, slots=True)
class DecodeArguments:
    """The arguments of one call of ``decode``.

    Attributes:
        return_dict: Whether an output object is returned, not a tuple.
        num_frames: Frames of each video in the batch, for a class that takes frames in the batch; others ignore it.
        timestep: For a decoder that is conditioned on one.
        inpainting: The picture and the mask by their names, for a class that takes both; a class that gets one of
            them alone ignores it.
    """

    return_dict: bool
    num_frames: int | None
    timestep: float | None
    inpainting: Mapping[str, torch.Tensor]


def read_arguments(class_name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> DecodeArguments:
    """Return the arguments of a call, as the class reads them.

    Raises:
        TypeError: for arguments that the class does not take.
        RequestError: for values that a server cannot be told.
    """
    names = interface_of(class_name).arguments
    if len(given) > len(names):
        raise TypeError(
            f"decode() of {class_name} takes {len(names)} arguments after the latents, not {len(given)}"
        )
    values = {**dict(zip(names, given, strict=False)), **named}
    # Latte's pipeline passes a number of frames to every VAE whose `forward` has one, as a remote VAE's has.
    known = {*names, "generator", "return_dict", "num_frames"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise TypeError(f"decode() of {class_name} has no argument {unknown[0]!r}")
    if values.get("causal") is not None:
        raise RequestError("a remote VAE decodes as its config says", saw=f"causal={values['causal']}")
    shown = {name: values[name] for name in ("image", "mask") if values.get(name) is not None}
    return DecodeArguments(
        values.get("return_dict") is not False,
        values.get("num_frames"),
        _timestep(values.get("temb")),
        shown if len(shown) == 2 else {},
    )


def _timestep(temb: Any) -> float | None:
    if temb is None:
        return None
    steps = {float(step) for step in torch.as_tensor(temb).flatten()}
    if len(steps) != 1:
        raise RequestError("a remote VAE decodes a batch at one timestep", saw=sorted(steps)[:4], expected="one")
    return steps.pop()


def add_attributes(
    remote: torch.nn.Module, class_name: str, config: Mapping[str, Any], statistics: Mapping[str, Sequence[float]]
) -> None:
    """Give ``remote`` the attributes that the class computes from its config, and its statistics as buffers.

    Raises:
        Mismatch: when the server does not know the statistics, because it has no weights yet.
    """
    with torch.device("meta"):
        blank = getattr(diffusers, class_name).from_config(dict(config))
    for name, value in vars(blank).items():
        if (
            not name.startswith("_")
            and name != "training"
            and isinstance(value, bool | int | float | str | list | tuple)
        ):
            setattr(remote, name, value)
    shapes = {name: buffer.shape for name, buffer in blank.named_buffers() if name in _STATISTICS}
    wrong = [name for name, shape in shapes.items() if shape.numel() != len(statistics.get(name, ()))]
    if wrong:
        raise Mismatch(
            f"the server does not know the statistics of its {class_name}",
            saw=f"no {', no '.join(wrong)}, which are among the weights",
            expected="weights that have been downloaded",
            hint="`hybridge models --download NAME` on that machine, or one request to the model",
        )
    buffers = {name: torch.tensor(tuple(statistics[name])) for name in shapes}
    if "latents_mean" in buffers:
        remote.register_buffer("latents_mean", buffers["latents_mean"])
        remote.register_buffer("latents_std", buffers["latents_std"])
    elif buffers:
        norm = torch.nn.BatchNorm2d(len(buffers["bn.running_mean"]), eps=blank.bn.eps, affine=False).eval()
        norm.running_mean, norm.running_var = buffers["bn.running_mean"], buffers["bn.running_var"]
        remote.bn = norm
