"""Answer a request by a server or by a model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HybridgeError, OutOfMemory
from ..models import Normalisation, image_layout, latent_space, latents_layout
from ..protocol import Answer, DecodeRequest, EncodeRequest, FileAnswer, Request, TensorAnswer, VaeTask, WireTensor

if TYPE_CHECKING:
    from ..engine import Engine
    from ..models.doctor.causes import Finding

#: Practically no limit on the size of a picture: the user's own machine has no other clients.
_MAX_PIXELS = 2**40


def answer(
    request: Request,
    *,
    model: str,
    server: str | None,
    key: str | None,
    ca: str | None,
    device: str | None,
    dtype: str | None,
) -> Answer:
    """Return the answer to a request, and show the progress on the terminal.

    Raises:
        HybridgeError: when the request cannot be answered.
    """
    return next(answers([request], model=model, server=server, key=key, ca=ca, device=device, dtype=dtype))


def answers(
    requests: Sequence[Request],
    *,
    model: str,
    server: str | None,
    key: str | None,
    ca: str | None,
    device: str | None,
    dtype: str | None,
) -> Iterator[Answer]:
    """Yield the answer to each request, one after another, from one client or one loaded model.

    Raises:
        HybridgeError: when the request cannot be answered.
    """

    from .console import screen

    console = screen(stderr=True)
    if server:
        from ..client import Client

        with Client(server, api_key=key, verify=ca) as client:
            for request in requests:
                with console.status(f"{model} on {server}"):
                    answered = client.send(request, model=model).answer
                yield answered
        return

    from ..engine import Engine, EngineOptions, limit_threads, resolve

    limit_threads()
    options = EngineOptions(device=device or "auto", dtype=dtype or "auto")  # type: ignore[arg-type] # checked there
    engine = Engine.load(resolve(model), options)
    for request in requests:
        with console.status(f"{engine.spec.name} on this machine"):
            answered = (
                _decoded(engine, request) if isinstance(request, DecodeRequest) else _encoded(engine, request)
            )
        yield answered


def write_film(
    request: DecodeRequest,
    target: Path,
    *,
    model: str,
    server: str | None,
    key: str | None,
    ca: str | None,
    device: str | None,
    dtype: str | None,
) -> int:
    """Write a video while it is decoded; return its frames, 0 if they were not counted.

    Raises:
        HybridgeError: when the request cannot be answered.
    """
    from .console import screen

    console = screen(stderr=True)
    counted = 0
    if server:
        from ..client import Client

        with Client(server, api_key=key, verify=ca) as client, console.status(f"{model} on {server}") as status:

            def on_frame(frames: int, total: int | None) -> None:
                nonlocal counted
                counted = frames
                status.update(f"{model} on {server}: {frames}{f' of {total}' if total else ''} frames")

            client.decode_video(request, target, model=model, on_frame=on_frame)
        return counted

    from ..client.videos import written
    from ..engine import Engine, EngineOptions, limit_threads, resolve
    from ..models.doctor.requests import examine_elements
    from ..protocol.receipt import Receipt, comment_of
    from ..protocol.torch import to_torch
    from ..protocol.video_writer import VideoWriter

    limit_threads()
    options = EngineOptions(device=device or "auto", dtype=dtype or "auto")  # type: ignore[arg-type] # checked there
    engine = Engine.load(resolve(model), options)
    layout = latents_layout(request.latents.shape, engine.spec, request.height, request.width)
    height, width = layout.picture
    sent = _normalisation(engine, request)
    _tell(engine, [*examine_elements(request.latents, engine.spec, sent, request.height, request.width)])
    made_by = Receipt.of(_facts(engine, height, width, layout.video_frames)) if request.metadata else None
    comment = "" if made_by is None else comment_of(request, made_by)
    writer = VideoWriter(request.video, width, height, quality=request.quality, comment=comment)
    with written(target) as file, console.status(f"{engine.spec.name} on this machine") as status:

        def on_frames(frames: Any) -> None:
            nonlocal counted
            counted += len(frames)
            file.write(writer.add(frames.numpy()))
            status.update(f"{engine.spec.name} on this machine: {counted} of {layout.video_frames} frames")

        engine.decode(
            to_torch(request.latents),
            sent=sent,
            height=request.height,
            width=request.width,
            on_frames=on_frames,
        )
        file.write(writer.finish())
    return counted


def _decoded(engine: Engine, request: DecodeRequest) -> FileAnswer:
    """Return the picture with which a server would answer."""
    from ..engine import to_pixels
    from ..models.doctor.numbers import examine_output, vary
    from ..models.doctor.requests import examine_elements
    from ..protocol.media import write_picture
    from ..protocol.receipt import with_receipt
    from ..protocol.torch import from_torch, to_torch

    sent, sides = _normalisation(engine, request), (request.height, request.width)
    _tell(engine, [*examine_elements(request.latents, engine.spec, sent, *sides)])
    latents, layout = to_torch(request.latents), latents_layout(request.latents.shape, engine.spec, *sides)
    signed = _in_less_if_need_be(
        engine,
        "decode",
        (layout.batch, *layout.picture, layout.video_frames),
        lambda budget_bytes: engine.decode(
            latents, sent=sent, height=request.height, width=request.width, budget_bytes=budget_bytes
        ),
    )
    _tell(engine, [*examine_output(signed, lambda: vary(request.latents.to_numpy()))])
    answer = write_picture(from_torch(to_pixels(signed)), request.picture_format, quality=request.quality)
    if not request.metadata:
        return answer
    height, width = signed.shape[-2:]
    return with_receipt(answer, request, _facts(engine, height, width, 1))


def _facts(engine: Engine, height: int, width: int, frames: int) -> dict[str, object]:
    """Return what decides about the numbers of a decode of one item."""
    facts = dict(engine.facts)
    with suppress(HybridgeError):  # what cannot be planned has no mode
        facts["mode"] = engine.plan("decode", 1, height, width, frames).mode
    if engine.identity is not None:
        facts["weights"] = engine.identity.weights_hash(wait=True)
    return facts


def _tell(engine: Engine, found: list[Finding]) -> None:
    """Print warnings about latents, or refuse them, as a server does."""
    from ..models.doctor.requests import refuse_errors

    refuse_errors(found, engine.spec)
    for finding in found:
        _warn(finding.code, str(finding))


def _warn(code: str, text: str) -> None:
    from .console import screen

    screen(stderr=True).print(f"warning: {text} ({code})", markup=False, highlight=False)


def _encoded(engine: Engine, request: EncodeRequest) -> TensorAnswer:
    """Return the latents with which a server would answer."""
    from ..protocol.torch import from_torch, to_torch
    from ..protocol.video_reader import read_file

    engine.spec.check_encodes()
    image = request.image
    if not isinstance(image, WireTensor):
        spec = engine.spec
        image = read_file(
            image, is_video=spec.is_video, max_pixels=_MAX_PIXELS, multiple=spec.spatial_factor, note=_warn
        )
    pixels, wanted = to_torch(image), _normalisation(engine, request)
    layout = image_layout(image.shape, engine.spec, is_bytes=image.dtype == "uint8")
    latents = _in_less_if_need_be(
        engine,
        "encode",
        (layout.batch, layout.height, layout.width, layout.frames),
        lambda budget_bytes: engine.encode(
            pixels,
            wanted=wanted,
            value_range=request.value_range,
            sample=request.sample,
            seed=request.seed,
            budget_bytes=budget_bytes,
        ),
    )
    return TensorAnswer(from_torch(latents))


def _in_less_if_need_be(
    engine: Engine, task: VaeTask, size: tuple[int, int, int, int], run: Callable[[int | None], Any]
) -> Any:
    """Return the tensor that ``run`` returns for a budget in bytes: none, or a smaller plan's if memory ran out."""
    try:
        return run(None)
    except OutOfMemory as failure:
        refusal = OutOfMemory(failure.what, hint=failure.hint)
    # Outside of the except block, because the failure's traceback holds the tensors of the failed run.
    try:
        peak_bytes = engine.plan(task, *size).peak_bytes
    except HybridgeError:  # the module has no plan
        raise refusal from None
    smaller_bytes = engine.smaller_budget(task, *size, peak_bytes=peak_bytes)
    if smaller_bytes is None:
        raise refusal
    return run(smaller_bytes)


def _normalisation(engine: Engine, request: Request) -> Normalisation | None:
    by, scale, shift = request.scaling.by, request.scaling.scaling_factor, request.scaling.shift_factor
    return latent_space.normalisation_of(engine.spec, by, scale, shift)
