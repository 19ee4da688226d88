"""One call that makes a pipeline smaller or faster, shows what it did, and can take it back."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...client import Client
from ...errors import EngineFailure, RequestError
from ..techniques import stack
from ..techniques.catalogue import named
from ..techniques.pipeline_context import PipelineContext
from ..techniques.stack import Step
from ..techniques.technique import Technique
from .optimised import Optimised
from .options import device_named
from .presets import PRESETS, Recipe, kind_of, preset_named
from .proving import prove as prove_stack


def optimize(
    pipe: Any,
    preset: str | None = None,
    *,
    techniques: Sequence[str] | None = None,
    server: str | None = None,
    prove: bool = True,
    device: str | torch.device | None = None,
) -> Optimised:
    """Puts a preset, or techniques of the caller's choice, in force on a diffusers pipeline.

    ::

        done = hybridge.optimize(pipe, preset="under-6gb")
        print(done)
        picture = pipe("a lighthouse in a storm", **done.call).images[0]
        done.undo()

    A technique that cannot run here is reported and the others stay, unless the preset's promise stands on it.

    Args:
        pipe: A text-to-image pipeline.  It is changed in place.
        preset: ``fastest``, ``under-4gb``, ``under-6gb``, ``under-8gb``, ``best-quality`` or ``hybrid``.
        techniques: In its place: names of the catalogue, in the order in which they are to be applied.
        server: Address of a hybridge server that may be used; it is asked at once whether it is there.
        prove: Makes a short picture, and where that does not show everything another one, to see whether each
            technique took effect.  Nothing of them stays.
        device: Where the pipeline is to compute; without, where it is, or on a GPU that this machine has.

    Raises:
        RequestError: for what is no such pipeline, names and orders that cannot be, and a preset whose promise
            cannot be kept here.  Nothing has been touched then.
        ClientError: when the server does not answer.  Nothing has been touched then.
        EngineFailure: when no picture could be made with all of it in force, or what the preset stands on failed.
            All has been undone then, or the message names what has no way back.
    """
    _check_pipeline(pipe)
    place = _place(pipe, device)
    recipe, purpose = _recipe(preset, techniques, place)
    rows = named(recipe.techniques)
    stack.check(rows)
    _check_place(pipe, place, rows)
    if server is not None:
        with Client(server) as client:
            client.models()
    context, forget = _context(pipe, place, server)
    try:
        _check_essential(purpose, recipe, context)
        steps = stack.apply(context, rows)
    except BaseException:
        forget()
        raise
    try:
        _check_in_force(purpose, recipe, steps)
        proofs = prove_stack(context, steps) if prove else {}
    except BaseException as why:
        stays = _undone(steps)
        if not stays:
            forget()
        if not isinstance(why, Exception):
            raise
        raise _failure(purpose, stays, why) from why
    done = tuple(step.result(proofs.get(step.technique.name)) for step in steps)
    return Optimised(purpose, str(place), recipe.reason or None, done, context, steps, forget)


def _check_pipeline(pipe: Any) -> None:
    from diffusers import DiffusionPipeline

    expected = "a text-to-image pipeline of diffusers, loaded"
    if not isinstance(pipe, DiffusionPipeline):
        hint = "DiffusionPipeline.from_pretrained(…)" if isinstance(pipe, (str, Path)) else None
        raise RequestError("not a pipeline", saw=type(pipe).__name__, expected=expected, hint=hint)
    takes = inspect.signature(pipe.__call__).parameters
    denoisers = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    if "prompt" not in takes or "image" in takes or all(denoiser is None for denoiser in denoisers):
        raise RequestError("not a pipeline from text to pictures", saw=type(pipe).__name__, expected=expected)


def _place(pipe: Any, device: str | torch.device | None) -> torch.device:
    if device is not None:
        return device_named(device)
    here: torch.device = pipe.device
    if here.type not in ("cpu", "meta"):
        return here
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _recipe(preset: str | None, techniques: Sequence[str] | None, place: torch.device) -> tuple[Recipe, str]:
    """(what is to be applied, what for)."""
    if (preset is None) == (techniques is None):
        raise RequestError(
            "optimize takes a preset or techniques",
            saw="neither" if preset is None else "both",
            expected=f'preset="…", one of {", ".join(PRESETS)}; or techniques=["…"]',
        )
    if preset is not None:
        chosen = preset_named(preset)
        return chosen.recipes[kind_of(place.type)], chosen.name
    if isinstance(techniques, str) or not techniques:
        raise RequestError(
            "not a list of techniques", saw=repr(techniques), expected='such as ["tiny-vae", "freeu"]'
        )
    return Recipe(tuple(techniques), reason=""), " + ".join(techniques)


def _check_place(pipe: Any, place: torch.device, rows: Sequence[Technique]) -> None:
    # Offloading moves the parts itself; nothing else does, and a pipeline on the wrong device is slow in silence.
    here = pipe.device
    if here.type in (place.type, "meta") or any(row.stage == "offload" for row in rows):
        return
    raise RequestError(
        f"the pipeline is on {here}",
        saw=" + ".join(row.name for row in rows),
        expected=f"a pipeline on {place}, as nothing of this moves it",
        hint=f'pipe.to("{place}") before, or device="{here}"',
    )


def _context(pipe: Any, place: torch.device, server: str | None) -> tuple[PipelineContext, Callable[[], Any]]:
    """The pipeline on a bench, and what removes the bench's folder; it goes with the pipeline at the latest."""
    origin = str(pipe.config.get("_name_or_path") or "")

    def reload(**parts: Any) -> Any:
        if not origin:
            raise RequestError(
                "this pipeline was not loaded from anywhere, so its weights cannot be had again",
                saw=f"a {type(pipe).__name__} made in memory",
                hint="save_pretrained, then from_pretrained",
            )
        return type(pipe).from_pretrained(origin, **parts)

    folder = Path(tempfile.mkdtemp(prefix="hybridge-"))
    forget = weakref.finalize(pipe, shutil.rmtree, folder, ignore_errors=True)
    context = PipelineContext(
        pipe=pipe, arguments={}, folder=folder, device=place, reload=reload, origin=origin, server=server
    )
    return context, forget


def _check_essential(purpose: str, recipe: Recipe, context: PipelineContext) -> None:
    for row in named(recipe.essential):
        missing = row.why_missing(context)
        if missing is not None:
            raise RequestError(
                f"{purpose} cannot be had here, as it stands on {row.title}",
                saw=missing.reason,
                hint=missing.instead,
            )


def _check_in_force(purpose: str, recipe: Recipe, steps: Sequence[Step]) -> None:
    for step in steps:
        if step.technique.name in recipe.essential and step.applied is None:
            why = step.failure or (step.missing.reason if step.missing else None)
            raise EngineFailure(f"{purpose} stands on {step.technique.title}, which failed", saw=why)


def _undone(steps: Sequence[Step]) -> list[str]:
    """Undoes a stack as far as that goes; names what stays, be it because its way back failed."""
    stays = []
    for step in reversed(steps):
        try:
            stays += stack.undo([step])
        except Exception:
            stays.append(step.technique.name)
    return stays


def _failure(purpose: str, stays: Sequence[str], why: Exception) -> EngineFailure:
    text = str(why) if isinstance(why, EngineFailure) else f"{type(why).__name__}: {why}"
    undone = f"undone but for {', '.join(stays)}: load the pipeline anew" if stays else "all of it is undone"
    return EngineFailure(f"{purpose} did not work; {undone}", saw=text)
