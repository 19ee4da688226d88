"""Find the model of a server that fits a pipeline.

It compares configs: it reads attributes of the pipeline, and uses neither torch nor the wire format.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Mismatch, ModelUnavailable
from ..models import (
    CATALOGUE,
    CLASS_NAMES,
    ModelSpec,
    Normalisation,
    model_of_pipeline,
    spec_from_config,
)
from .served_vaes import REPLACEABLE, ServedModel, irreplaceable, kind_of

#: Relative tolerance: checkpoints give the same factor with more or fewer digits.
_TOLERANCE = 1e-3

#: The kind of a need that VAEs of several classes can meet.
ANY = "any"


@dataclass(frozen=True, slots=True)
class Need:
    """The VAE that a pipeline needs, as far as it is known.

    Attributes:
        who: Name of the pipeline in messages.
        known_from: The source of this knowledge.
        kind: Which VAEs can take its place, see :func:`kind_of`; or :data:`ANY`.
        latent_channels: The number of channels; or all possible numbers if only the denoiser's channels are known,
            which may be packed or include several latents.
        normalisation: The normalisation; None if unknown.
        spatial_factor: Pixels per latent; None if the pipeline can be adapted to any factor.
        family: The catalogue's name of the model, if the pipeline's class identifies it.
        config: The config of the pipeline's own VAE, if it has one.
    """

    who: str
    known_from: str
    kind: str
    latent_channels: tuple[int, ...]
    normalisation: Normalisation | None
    spatial_factor: int | None
    family: str | None
    config: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)

    @property
    def usual(self) -> Normalisation | None:
        """The normalisation that most models of the pipeline's class have; None if its own VAE has said its own."""
        return self.normalisation if self.config is None else None

    def impossibilities(self, model: ServedModel | ModelSpec) -> list[str]:
        """Return the reasons why ``model`` cannot work at all, even if the user asks for it."""
        kind = kind_of(model.class_name)
        if self.kind not in (kind, ANY) and not {kind, self.kind} <= set(CLASS_NAMES.values()):
            return [f"{model.class_name} where {_class_said(self.kind)} is needed"]
        found = []
        if model.latent_channels not in self.latent_channels:
            found.append(f"{model.latent_channels} latent channels where {self.latent_channels[0]} are needed")
        if self.spatial_factor is not None and model.spatial_factor != self.spatial_factor:
            found.append(f"{model.spatial_factor} pixels per latent where {self.spatial_factor} are needed")
        return found

    def differences(self, model: ServedModel | ModelSpec) -> list[str]:
        """Return how ``model`` differs from the need; full or tiny makes no difference."""
        found = self.impossibilities(model)
        if self.normalisation is not None and not _same(model.normalisation, self.normalisation):
            found.append(f"{_said(model.normalisation)} where {_said(self.normalisation)} is needed")
        if isinstance(model, ServedModel) and model.kind == model.class_name and self.config is not None:
            other = [name for name, value in self.config.items() if model.config.get(name, value) != value]
            if other and model.kind == self.kind:
                found.append(f"another {', '.join(sorted(other)[:3])} in its config")
        return found

    def to_start(self) -> str:
        """Return the command that starts a server for this pipeline."""
        rows = [
            row for row in CATALOGUE.values() if kind_of(row.class_name) == self.kind and not self.differences(row)
        ]
        if not rows or (self.normalisation is None and self.kind in CLASS_NAMES.values()):
            return "`hybridge serve NAME=REPOSITORY:vae`, with the repository that the pipeline came from"
        names = [row.name for row in rows]
        return f"`hybridge serve {self.family if self.family in names else names[0]}`"


def need_of(pipe: Any, *, is_chosen: bool) -> Need:
    """Return the need of ``pipe``: from its VAE's config, else from its class, else from its denoiser.

    Args:
        pipe: A diffusers pipeline.
        is_chosen: Whether the user chose the model; a pipeline without a VAE is then adapted to it, and the
            number of the denoiser's channels suffices if the class is unknown.

    Raises:
        Mismatch: when it has no VAE that can be replaced, or its need cannot be determined.
    """
    who = type(pipe).__name__
    if not all(hasattr(pipe, name) for name in ("vae", "_internal_dict")):
        raise Mismatch("this has no VAE to replace", saw=who, expected="a diffusers pipeline with `vae`")
    family = model_of_pipeline(base.__name__ for base in type(pipe).__mro__)
    channels = _denoiser_channels(pipe)
    row = CATALOGUE.get(family or "")
    is_playground = type(getattr(pipe, "scheduler", None)).__name__.startswith("EDM")  # v2.5 uses SDXL's class
    if row is not None and (is_playground or (channels and row.latent_channels not in channels)):
        row = None
    if pipe.vae is not None:
        return _need_of_vae(pipe.vae, who, row, is_chosen=is_chosen)
    annotated = _annotated(type(pipe))
    if annotated and not any(name in REPLACEABLE for name in annotated):
        raise irreplaceable(who, f"a class made with {' or '.join(annotated)}")
    own = [name for name in annotated if name in REPLACEABLE]
    rows = [other.latent_channels for other in CATALOGUE.values() if other.class_name in own]
    is_of_pictures = any(name in CLASS_NAMES for name in own)
    if (
        row is None
        and len(own) == 1
        and not is_of_pictures
        and (latents := _latent_channels(pipe) or tuple(dict.fromkeys(rows)))
    ):
        return Need(who, f"the class that {who} names", own[0], latents, None, None, None)
    if row is not None:
        # A model that the user chose may have another factor; otherwise the family's own factor is required.
        factor = None if is_chosen else row.spatial_factor
        kind = ANY if is_chosen and len(own) > 1 else kind_of(row.class_name)  # inpainting takes two classes
        return Need(who, who, kind, (row.latent_channels,), row.normalisation, factor, row.name)
    if is_chosen and channels:
        kind = "kl" if len(own) < 2 else ANY  # PRX's class takes an AutoencoderKL or an AutoencoderDC
        return Need(who, "its denoiser's channels", kind, channels, None, None, None)
    raise Mismatch(
        f"nothing tells which VAE {who} needs",
        saw="vae=None" + ("" if channels else " and no denoiser of a known name"),
        hint=("" if is_chosen else "model= with the server's name of that VAE, or ")
        + "loading it with its VAE, whose config says it",
    )


def _annotated(pipeline: type) -> list[str]:
    """Return the names of diffusers' VAE classes in its ``__init__``'s annotation; none without annotation."""
    annotation = inspect.signature(pipeline.__init__).parameters.get("vae")  # type: ignore[misc]
    said = "" if annotation is None or annotation.annotation is annotation.empty else annotation.annotation
    return re.findall(r"\w*(?:Autoencoder\w+|VAE\b)", said.__name__ if inspect.isclass(said) else str(said))


def _need_of_vae(vae: Any, who: str, row: ModelSpec | None, *, is_chosen: bool) -> Need:
    config = plain_config(vae.config)
    names = [vae.config.get("_class_name"), *(base.__name__ for base in type(vae).__mro__)]
    class_name = next((name for name in names if name in REPLACEABLE), None)
    if class_name is None:
        raise irreplaceable(who, type(vae).__name__)
    try:
        spec = spec_from_config(who, who, None, {**config, "_class_name": class_name}, parent=row)
    except ModelUnavailable as error:
        raise Mismatch(
            f"the VAE of this {who} is not of a kind that hybridge serves",
            saw=error.saw,
            expected=error.expected,
        ) from None
    kind = kind_of(spec.class_name)
    is_known = kind != "tiny" or row is not None
    if not (is_known or is_chosen):
        raise Mismatch(
            f"nothing tells whose latents the tiny autoencoder of this {who} reads",
            saw="a config without factors, as all of them have",
            hint='model="taesd", or whichever it is',
        )
    return Need(
        who,
        "its VAE's config",
        kind,
        (spec.latent_channels,),
        # A tiny autoencoder's own config has no factors, and some classes have statistics among their weights.
        spec.normalisation if is_known and spec.normalisation.buffers is None else None,
        spec.spatial_factor,
        row.name if row else None,
        config,
    )


def denoiser_of(pipe: Any) -> Any:
    """Return the module that makes a pipeline's latents, under any of its usual names; None if there is none."""
    present = (getattr(pipe, name, None) for name in ("unet", "transformer", "image_unet"))
    return next((module for module in present if module is not None), None)


def _denoiser_channels(pipe: Any) -> tuple[int, ...]:
    config = getattr(denoiser_of(pipe), "config", None)
    # A denoiser's output is only latents; its input may be latents, masks and pictures together.
    ends = [getattr(config, name, None) for name in ("out_channels", "in_channels")]
    known = [end for end in ends if isinstance(end, int) and end > 0]
    possible = [end // parts for end in known for parts in range(1, end + 1) if end % parts == 0]
    return tuple(dict.fromkeys(possible))


def _latent_channels(pipe: Any) -> tuple[int, ...]:
    """Return the possible numbers of latent channels, of latents as they are or packed two by two."""
    config = getattr(denoiser_of(pipe), "config", None)
    ends = [getattr(config, name, None) for name in ("out_channels", "in_channels", "in_visual_dim")]
    end = next((end for end in ends if isinstance(end, int) and end > 0), 0)
    return tuple(end // parts for parts in (1, 4) if end and end % parts == 0)


def choose(need: Need, models: Sequence[ServedModel], asked: str | None, server: str) -> tuple[ServedModel, str]:
    """Return the model that replaces the pipeline's VAE, and the reason.

    Args:
        need: The pipeline's need.
        models: The server's models.
        asked: The model's name that the user chose, which is used unless it cannot work at all.
        server: The server's address, for messages.

    Raises:
        Mismatch: when no model fits, or the chosen model does not exist or cannot work.
    """
    if asked is not None:
        chosen = _asked_for(asked, need, models, server)
        doubts = [] if _is_of_unknown_parent(chosen) else need.differences(chosen)
        if doubts and need.usual is not None:
            own, usual = _said(chosen.normalisation), _said(need.usual)
            return chosen, f"asked for; its {own} is used, where most models of {need.who} have {usual}"
        return chosen, f"asked for, although {', '.join(doubts)}, by {need.known_from}" if doubts else "asked for"
    # The latents of an unknown tiny autoencoder cannot be identified: the user has to name it.
    usable = [model for model in models if not _is_of_unknown_parent(model)]
    fitting = [model for model in usable if not need.differences(model)]
    fitting += [model for model in models if model not in usable and not need.impossibilities(model)]
    candidates = [model for model in fitting if model.kind == need.kind and model in usable]
    if not candidates:
        hint = f'model="{fitting[0].name}"' if fitting else f"{need.to_start()} on that machine"
        possible = [model for model in usable if not need.impossibilities(model)]
        if need.usual is not None and not fitting and possible:
            hint += f', or model="{possible[0].name}", if the pipeline was trained with that VAE'
        raise Mismatch(
            f"{server} has no model for this {need.who}",
            saw="; ".join(_described(model, need) for model in models) or "no VAE at all",
            expected=f"{_wanted(need)}, by {need.known_from}{'' if need.config else ', whose VAE is None'}",
            hint=hint,
        )
    # Equal weights cannot be recognised; an equal config is closest to that, then the catalogue's own name.
    candidates.sort(key=lambda model: (model.config != need.config, model.name != need.family))
    chosen, *others = candidates
    reason = f"{_wanted(need)}, by {need.known_from}"
    if others:
        why = "its config is the pipeline's" if chosen.config == need.config else "nearest by name and order"
        reason += f"; of {', '.join(model.name for model in candidates)}, all of which fit, {why}"
    return chosen, reason


def _is_of_unknown_parent(model: ServedModel) -> bool:
    """Return whether it is a tiny autoencoder without a known full model; its factors then mean nothing."""
    return model.kind == "tiny" and _same(model.normalisation, Normalisation())


def _asked_for(asked: str, need: Need, models: Sequence[ServedModel], server: str) -> ServedModel:
    by_name = {model.name: model for model in models}
    fitting = [model for model in models if not need.differences(model)]
    near = difflib.get_close_matches(asked, [model.name for model in fitting], n=1) or [m.name for m in fitting]
    remedy = f'model="{near[0]}"' if near else f"{need.to_start()} on that machine"
    if asked not in by_name:
        raise Mismatch(
            f"{server} does not serve {asked[:60]!r}",
            saw=", ".join(by_name) or "no VAE at all",
            expected=asked[:60],
            hint=remedy,
        )
    wrong = need.impossibilities(by_name[asked])
    if wrong:
        raise Mismatch(
            f"{asked} of {server} does not fit this {need.who}",
            saw=", ".join(wrong),
            expected=f"{_wanted(need)}, by {need.known_from}",
            hint=remedy,
        )
    return by_name[asked]


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's config in JSON's types, without the entries about its source."""
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public))
    return plain


def _same(one: Normalisation, other: Normalisation) -> bool:
    numbers = [(n.scaling_factor, n.shift_factor, *(n.mean or ()), *(n.std or ())) for n in (one, other)]
    return len(numbers[0]) == len(numbers[1]) and all(
        math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * _TOLERANCE)
        for a, b in zip(*numbers, strict=True)
    )


def _said(by: Normalisation) -> str:
    shift = f" and shift {by.shift_factor:g}" if by.shift_factor else ""
    means = " with means and deviations" if by.mean else ""
    return f"scaling factor {by.scaling_factor:g}{shift}{means}"


def _wanted(need: Need) -> str:
    normalisation = f", {_said(need.normalisation)}" if need.normalisation else ""
    kind = {"kl": "", ANY: "", "tiny": ", tiny"}.get(need.kind, f", {need.kind}")
    return f"{need.latent_channels[0]} latent channels{normalisation}{kind}"


def _class_said(kind: str) -> str:
    return next((name for name, known in CLASS_NAMES.items() if known == kind), kind)


def _described(model: ServedModel, need: Need) -> str:
    return f"{model.name} ({', '.join(need.differences(model)) or 'another class'})"
