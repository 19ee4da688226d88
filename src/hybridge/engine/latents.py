"""Prepare latents for a module: scale them in the wider dtype, and check for numbers that cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..errors import EngineFailure, RequestError
from ..models import CATALOGUE, ModelSpec, Normalisation, latent_space
from .program.lowering import skeleton

#: The buffers with statistics of latents: LTX's, and FLUX.2's batch norm.
STATISTICS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")

#: Far above any VAE's latents: SD's stay within ±50, in VAE space and outside it.
ABSURD = 1e4

#: How many bytes of freed memory an allocator overwrites.  See :func:`check_finite`.
_ALLOCATOR_BYTES = 32


def to_module(
    latents: torch.Tensor, spec: ModelSpec, sent: Normalisation | None, dtype: torch.dtype
) -> torch.Tensor:
    """Convert latents as sent by a client to the module's normalisation and dtype.

    Args:
        latents: (B, C, h, w).
        spec: The model.
        sent: The normalisation of the latents, or None if they are in VAE space.
        dtype: The module's dtype.

    The arithmetic runs in the wider of the two dtypes, so that half-precision latents lose no precision with a
    float32 VAE, and float32 latents are rounded once.
    """
    if sent is None:
        check_vae_space(spec)
    wide = latents.to(torch.promote_types(latents.dtype, dtype))
    ready: torch.Tensor = latent_space.to_module(wide, spec, sent)
    return ready.to(dtype)


def with_statistics(spec: ModelSpec, module: Any) -> ModelSpec:
    """Return the facts of a loaded model, with the statistics of its latents that only the module has."""
    by = spec.normalisation
    if spec.kind == "tiny" and by.buffers is not None:  # they are its parent's
        module = _parent_of(spec) if by.buffers == "config" else None
    read = None if by.buffers is None or module is None else _STATISTICS[by.buffers]
    mean, std = (None, None) if read is None else read(module)
    if mean is None or std is None:
        return spec
    means, stds = (_numbers(part) for part in (mean, std))
    return replace(spec, normalisation=replace(by, mean=means, std=stds))


def _parent_of(spec: ModelSpec) -> Any:
    """Return a module with the config of the model whose latents a tiny autoencoder takes, where that is known."""
    parent = CATALOGUE[spec.parent or ""]
    return None if parent.architecture is None else skeleton(parent.class_name, parent.architecture)


def check_vae_space(spec: ModelSpec) -> None:
    """Raise :class:`RequestError` if VAE space is asked of a tiny autoencoder that cannot convert to it."""
    if spec.kind == "tiny" and spec.normalisation.buffers and not spec.normalisation.mean:
        raise RequestError(
            f"{spec.name} is a tiny autoencoder, which takes and gives a pipeline's latents",
            saw=f"latents in VAE space, whose statistics are in the weights of {spec.parent}",
            hint="do_scaling=True, with latents as the pipeline has them",
        )


def statistics_of(module: Any) -> dict[str, tuple[float, ...]]:
    """Return the statistics of latents among a module's weights, by the names of their buffers."""
    held = dict(module.named_buffers()) if hasattr(module, "named_buffers") else {}
    return {name: _numbers(held[name]) for name in STATISTICS if name in held}


def _numbers(part: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(part, dtype=torch.float32, device="cpu").flatten().tolist())


#: How the statistics of latents are found; see :class:`Normalisation`.
_STATISTICS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "latents": lambda module: (module.latents_mean, module.latents_std),
    "batch norm": lambda module: (
        module.bn.running_mean,
        torch.sqrt(module.bn.running_var + module.config.batch_norm_eps),
    ),
    "config": lambda module: (module.config.latents_mean, module.config.latents_std),
}


def check_finite(tensor: torch.Tensor, name: str) -> None:
    """Raise :class:`RequestError` for NaN, infinity, or values that no latents and no pixels have."""
    bad = ~(tensor.abs() <= ABSURD)  # a comparison with NaN is false
    if not bad.any():
        return
    flat = bad.reshape(-1)
    first, count = int(flat.nonzero()[0]), int(flat.sum())
    value = tensor.reshape(-1)[first].item()
    at_start = bool(flat[: _ALLOCATOR_BYTES // tensor.element_size()].sum() == count)
    is_finite = bool(torch.isfinite(tensor).all())
    raise RequestError(
        f"the {name} hold numbers that cannot be right",
        saw=f"{value:g} at element {first}, {count} of {flat.numel()} not finite or beyond ±{ABSURD:g}",
        expected="numbers such as a VAE has",
        hint="tensor.detach().cpu().contiguous() before sending: only the first bytes are damaged, which is what"
        " diffusers' remote_decode since 0.39 does to tensors on a GPU"
        if at_start
        else "a look at where they are made (float16 overflow gives infinities), and at the scaling factor",
        cause="freed-memory" if at_start else "absurd-numbers" if is_finite else "not-finite",
    )


def check_output(spec: ModelSpec, dtype: torch.dtype, *outputs: torch.Tensor) -> None:
    """Raise an EngineFailure if what a model made in this dtype has NaN or infinity."""
    if all(bool(torch.isfinite(output).all()) for output in outputs):
        return
    name = str(dtype).removeprefix("torch.")
    raise EngineFailure(
        f"{spec.name} gave NaN or infinity in {name}",
        hint="--dtype float32" if name != "float32" else "other input; this is far outside of its range",
        cause="float16-overflow" if name == "float16" else "not-finite-output",
    )
