"""Requests to decode latents and to encode pictures."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, cast

from starlette.responses import Response

from ...models import ModelSpec
from ...protocol import DecodeRequest, is_raw_tensor, read_request
from ..scheduling.limits import Limits
from ..scheduling.vae_job import VaeJob, admit, infer_model
from .job_kind import SHORT_QUERY, JobKind, ResponseTools, SentRequest
from .preview import answer_with_preview
from .served_models import ServedModels
from .video_stream import answer_with_video


class VaeKind(JobKind[VaeJob]):
    """Jobs of VAEs.  A request that names neither a task nor a model is one of these.

    Args:
        served: The models of this server.
        limits: What may be asked for.
        default_model: The model to take where several fit.
    """

    def __init__(self, served: ServedModels, limits: Limits, default_model: str | None) -> None:
        self._served, self._limits, self._default_model = served, limits, default_model

    def recognise(self, sent: SentRequest) -> SentRequest | None:
        return None if sent.task == "prompt" else sent

    def is_quick_to_read(self, sent: SentRequest) -> bool:
        return len(sent.query) <= SHORT_QUERY and is_raw_tensor(sent.headers.get("content-type", ""))

    def read(self, sent: SentRequest) -> VaeJob:
        request = read_request(sent.query, sent.headers, sent.body, sent.task)
        if sent.spec is not None:
            return admit(request, cast("ModelSpec", sent.spec), self._limits)
        spec, reason = infer_model(request, self._served.vaes, self._default_model)
        job = admit(request, spec, self._limits)
        return replace(job, inferred=f"model={spec.name}; task={job.task}; reason={reason}")

    def stream(self, job: VaeJob, tools: ResponseTools) -> Coroutine[Any, Any, Response] | None:
        """A preview and then the picture, if the request asks for a preview; a video while it is decoded."""
        if not (isinstance(job.request, DecodeRequest) and job.request.preview):
            return None if job.film is None else answer_with_video(job, job.film, tools)
        infos = [info for info in tools.backend.info() if info.state == "loaded"]
        loaded = {info.spec.name: info.spec for info in infos if isinstance(info.spec, ModelSpec)}
        return answer_with_preview(job, loaded, tools)
