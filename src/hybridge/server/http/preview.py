"""A preview before the picture, in one response, as :mod:`hybridge.protocol.multipart_answer` defines it.

A tiny autoencoder of the model makes the preview, if one is served: on the device, before the picture.  Otherwise
the model's latents → RGB matrix makes it, on the CPU.  The preview is sent before the full decode ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from starlette.responses import Response

from ... import protocol
from ...errors import HybridgeError, NoPreview, RequestError
from ...models import LATENT_RGB, LatentRgb, ModelSpec, latent_space, latents_layout
from ...protocol import DecodeRequest, HttpResponse, WireTensor
from ...protocol.media import write_picture
from ..error_responses import log_failure
from ..middleware.request_record import HUNG_UP
from ..scheduling.vae_job import VaeJob, VaeResult
from .job_kind import ResponseTools, written
from .job_stream import JobStream
from .response_headers import about_job, about_run

log = logging.getLogger("hybridge.preview")

#: The name of the latents → RGB matrix in the header ``hybridge-preview``.
LATENT_RGB_NAME = "latent-rgb"


def choose_source(spec: ModelSpec, served: Mapping[str, ModelSpec]) -> ModelSpec | LatentRgb:
    """Return what makes the previews of a model: its tiny autoencoder, or its matrix.

    Either has to be for as many latent channels: users give the catalogue's names to other models, too.

    Raises:
        NoPreview: when there is neither.
    """
    channels = spec.latent_channels
    tinies = (other for other in served.values() if other.kind == "tiny" and other.parent == spec.name)
    tiny = next((other for other in tinies if other.latent_channels == channels), None)
    matrix = LATENT_RGB.get(spec.parent or spec.name)
    source = tiny or (matrix if matrix is not None and len(matrix.factors) == channels else None)
    if source is None:
        raise NoPreview(
            f"there is no preview for {spec.name}",
            saw="no tiny autoencoder of it among the served models, and no latents → RGB factors",
            expected="one of them, as " + ", ".join(LATENT_RGB) + " have",
            hint="the same request without preview, or a server that also serves its tiny autoencoder",
        )
    return source


def approximate(request: DecodeRequest, spec: ModelSpec, rgb: LatentRgb) -> WireTensor:
    """Apply the matrix to the latents of one picture: uint8 (1, h, w, 3), a pixel for each latent."""
    import numpy as np

    layout = latents_layout(request.latents.shape, spec, request.height, request.width)
    scaling = request.scaling
    sent = latent_space.normalisation_of(spec, scaling.by, scaling.scaling_factor, scaling.shift_factor)
    (latents,) = latent_space.unpack(request.latents.to_numpy().astype(np.float32), layout)
    normalised = latent_space.to_pipeline(latents, spec, sent)
    colours = np.einsum("chw,cd->hwd", normalised, np.asarray(rgb.factors, np.float32)) + np.asarray(
        rgb.bias, np.float32
    )
    # The full decode reports what is wrong with the latents.
    unit = np.nan_to_num(colours / 2 + 0.5).clip(0, 1)
    return WireTensor.from_numpy((unit * 255).round().astype(np.uint8)[None])


async def answer_with_preview(job: VaeJob, served: Mapping[str, ModelSpec], tools: ResponseTools) -> Response:
    """Return the response to an admitted decode job that asked for a preview.

    The record gets the same facts about the picture as without a preview.

    Raises:
        NoPreview: when nothing can make one.
        RequestError: for a batch.
        HybridgeError: when the job is refused before the preview is there.
    """
    if not isinstance(job.request, DecodeRequest):
        raise RequestError("only a decode has a preview")
    if job.spec.is_video:
        raise NoPreview("a preview is of a picture, not of a video", saw=job.spec.name, hint="output_type=mp4")
    if job.batch > 1:
        raise RequestError("a preview is of one picture", saw=f"{job.batch} latents", hint="a request for each")
    source = choose_source(job.spec, served)
    # The preview enters the queue first; the full job does not wait until the preview is written.
    preview = asyncio.ensure_future(_preview(job, job.request, source, tools))
    full = asyncio.ensure_future(tools.backend.run(job))
    full.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved, even if nobody awaits it
    try:
        with tools.deadline.bound():
            first = await preview
        if full.done():
            full.result()  # refused at once: that still has a status of its own
    except BaseException:
        preview.cancel()
        full.cancel()
        raise
    headers = {"content-type": protocol.PARTED, **about_job(job)}
    return JobStream(_parts(first, full, job, tools), full, headers)


async def _preview(
    job: VaeJob, request: DecodeRequest, source: ModelSpec | LatentRgb, tools: ResponseTools
) -> HttpResponse:
    picture = replace(request, output="picture", preview=False, image=None, mask=None)
    if isinstance(source, ModelSpec):
        quick = replace(job, spec=source, request=picture)
        result = await tools.backend.run(quick)
        made_by, response = source.name, await written(quick, result, tools.in_worker)
    else:
        pixels = await tools.in_worker(approximate, request, job.spec, source)
        answer = await tools.in_worker(write_picture, pixels, picture.picture_format)
        made_by, response = LATENT_RGB_NAME, protocol.write_answer(answer)
    return HttpResponse(response.status, {**response.headers, "hybridge-preview": made_by}, response.body)


async def _parts(
    first: HttpResponse, full: asyncio.Future[VaeResult], job: VaeJob, tools: ResponseTools
) -> AsyncIterator[bytes]:
    record = tools.record
    record.status = HUNG_UP  # unless it is there to the end
    yield protocol.write_part("preview", first)
    picture = await _finished(full, job, tools)
    record.status = picture.status  # the response's own went out before
    yield protocol.write_part("picture", picture)
    yield protocol.end_parts()


async def _finished(full: asyncio.Future[VaeResult], job: VaeJob, tools: ResponseTools) -> HttpResponse:
    record = tools.record
    try:
        with tools.deadline.bound():
            result = await full
            computed = time.perf_counter()
            response = await written(job, result, tools.in_worker)
    except HybridgeError as error:
        log_failure(error)
        return protocol.write_failure(error)
    except Exception as error:
        log.exception("after the preview")
        return protocol.write_status(500, f"unexpected {type(error).__name__}; the server's log says more")
    encode_ms = result.milliseconds.get("encode", 0.0) + 1e3 * (time.perf_counter() - computed)
    record.milliseconds.update(result.milliseconds | {"encode": encode_ms})
    record.shared_by = result.shared_by
    about = about_run(result, record.milliseconds)
    return HttpResponse(response.status, {**response.headers, **about}, response.body)
