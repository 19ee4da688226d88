"""Requests for the embeddings of prompts."""

from __future__ import annotations

from typing import cast

from ...models import TextSpec
from ...protocol import read_prompt_request
from ...protocol.prompt_wires import from_flux2, from_sd_next
from ..scheduling.limits import Limits
from ..scheduling.prompt_job import PromptJob, admit_prompt
from .job_kind import SHORT_QUERY, JobKind, SentRequest
from .served_models import ServedModels

#: JSON that takes less time to read than the way to a thread and back.
_SHORT_BODY = 16 * 1024


class PromptKind(JobKind[PromptJob]):
    """Jobs of text encoders; requests of SD.Next and of FLUX.2's remote text encoder name no model.

    Args:
        served: The models of this server.
        limits: What may be asked for.
        default_model: The model to take where several fit.
    """

    def __init__(self, served: ServedModels, limits: Limits, default_model: str | None) -> None:
        self._served, self._limits, self._default_model = served, limits, default_model

    def recognise(self, sent: SentRequest) -> SentRequest | None:
        limits = self._limits.prompts
        if sent.task == "prompt" and sent.spec is not None:
            return sent
        if sent.task == "prompt":
            base, (query, body) = "Flux", from_sd_next(sent.query, sent.body, limits)
        elif sent.task is None:
            found = from_flux2(sent.query, sent.headers["content-type"], sent.body, limits)
            if found is None:
                return None
            base, (query, body) = "Flux2", found
        else:
            return None
        spec = self._served.text_of(base, self._default_model)
        return SentRequest(query, {"content-type": "application/json", "accept": ""}, body, "prompt", spec)

    def is_quick_to_read(self, sent: SentRequest) -> bool:
        is_form = "/form" in sent.headers.get("content-type", "")
        return len(sent.query) <= SHORT_QUERY and len(sent.body) <= _SHORT_BODY and not is_form

    def read(self, sent: SentRequest) -> PromptJob:
        request = read_prompt_request(sent.query, sent.headers, sent.body, self._limits.prompts)
        return admit_prompt(request, cast("TextSpec", sent.spec), self._limits)
