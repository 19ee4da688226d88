"""What a remote VAE has in common with the diffusers class that it stands in for: attributes, buffers, arguments.

Pipelines read more of a VAE than its config: ratios, buffers with statistics, the order of arguments of ``decode``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from ..errors import Mismatch, RequestError
from ..models import Normalisation


@dataclass(frozen=True, slots=True)
class Interface:
    """How the methods of a class differ from those of most classes.

    Attributes:
        arguments: Names of the positional arguments of ``decode`` after the latents.
        has_frames_in_batch: It takes and gives (B·F, C, h, w), and ``decode`` a number of frames.
    """

    arguments: tuple[str, ...] = ("return_dict", "generator")
    has_frames_in_batch: bool = False


_USUAL = Interface()
_INTERFACES: Mapping[str, Interface] = {
    "AutoencoderKLLTXVideo": Interface(("temb", "return_dict")),
    "AutoencoderKLTemporalDecoder": Interface(("num_frames", "return_dict"), has_frames_in_batch=True),
}


def interface_of(class_name: str) -> Interface:
    """Return how the methods of a diffusers class are called."""
    return _INTERFACES.get(class_name, _USUAL)


@dataclass(frozen=True, slots=True)
class DecodeArguments:
    """The arguments of one call of ``decode``.

    Attributes:
        return_dict: Whether an output object is returned, not a tuple.
        num_frames: Frames of each video in the batch, for a class that takes frames in the batch.
        timestep: For a decoder that is conditioned on one.
    """

    return_dict: bool
    num_frames: int | None
    timestep: float | None


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
    known = {*names, "generator", "return_dict"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise TypeError(f"decode() of {class_name} has no argument {unknown[0]!r}")
    return DecodeArguments(
        values.get("return_dict") is not False, values.get("num_frames"), _timestep(values.get("temb"))
    )


def _timestep(temb: Any) -> float | None:
    if temb is None:
        return None
    steps = {float(step) for step in torch.as_tensor(temb).flatten()}
    if len(steps) != 1:
        raise RequestError("a remote VAE decodes a batch at one timestep", saw=sorted(steps)[:4], expected="one")
    return steps.pop()


def add_attributes(remote: torch.nn.Module, class_name: str, config: Mapping[str, Any], by: Normalisation) -> None:
    """Give ``remote`` the attributes that the class computes from its config, and its statistics as buffers.

    Raises:
        Mismatch: when the server does not say the statistics, because the model is not loaded.
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
    buffers = {name for name, _ in blank.named_buffers()}
    if not buffers & {"latents_mean", "bn.running_mean"}:
        return
    if not (by.mean and by.std):
        raise Mismatch(
            f"the server does not say the statistics of its {class_name}",
            saw="no latents_mean and latents_std",
            expected="both, as of a model that is loaded",
            hint="one request to that model, or `hybridge serve` with it loaded from the start",
        )
    mean, std = torch.tensor(by.mean), torch.tensor(by.std)
    if "latents_mean" in buffers:
        remote.register_buffer("latents_mean", mean)
        remote.register_buffer("latents_std", std)
        return
    eps = float(config.get("batch_norm_eps") or blank.bn.eps)
    norm = torch.nn.BatchNorm2d(len(by.mean), eps=eps, affine=False).eval()
    norm.running_mean, norm.running_var = mean, _variance(std, eps)
    remote.bn = norm


def _variance(std: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the variance of which the pipeline computes exactly this deviation, √(variance + eps)."""
    variance = (std.double() ** 2 - eps).float()
    for _ in range(4):
        made = torch.sqrt(variance + eps)
        towards = torch.where(made < std, torch.inf, -torch.inf)
        variance = torch.where(made == std, variance, torch.nextafter(variance, towards.to(variance.dtype)))
    return variance
