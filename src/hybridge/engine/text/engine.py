"""The facade: the text encoders of one pipeline on one device."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import RequestError
from ...models import TextSide
from ...models.comfyui_text import Convention
from ...models.text_side import NEGATIVE_PREFIX
from ..machine.own_thread import run_in_own_thread
from ..memory.device_memory import map_torch_errors, release_memory
from ..options import Choice, EngineOptions, choose_device
from . import loading
from .checking import Asked, Facts, TextLimits, read_inputs, together
from .comfyui import encode_as_comfyui, read_comfy_inputs
from .cost import flops, multiplied_weights
from .embeddings import Embeddings
from .failures import failures_named, without_prompts_in_logs
from .footprint import Reserve, reserved
from .joining import join, split
from .layers import Layer, Progress, ShouldStop, layers_of, told_between
from .loading import TextParts
from .lora import Adapters, Lora
from .pipeline_calls import PipelineCalls
from .quantisation import held_bytes, no_gradients
from .repository import Repository, open_repository


@dataclass(frozen=True, slots=True)
class TextEngine:
    """The text side of a pipeline, ready.  Threads may share it: one encodes at a time.

    Attributes:
        repository: Where it came from.
        parts: The pipeline and its encoders.
        device: Where they are, and why there.
        limits: What one request may hold.
        adapters: The LoRA that the encoders have.
    """

    repository: Repository
    parts: TextParts
    device: Choice[torch.device]
    limits: TextLimits = field(default_factory=TextLimits)
    adapters: Adapters = field(init=False, repr=False, compare=False)
    _own_bytes: int = field(init=False, repr=False)
    _multiplied: Mapping[str, int] = field(init=False, repr=False)
    _calls: PipelineCalls = field(init=False, repr=False, compare=False)
    _facts: Facts = field(init=False, repr=False)
    _layers: tuple[Layer, ...] = field(init=False, repr=False, compare=False)
    _lock: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        models = self.parts.encoders.values()
        own = {id(one): held_bytes(one) for model in models for one in (*model.parameters(), *model.buffers())}
        object.__setattr__(self, "_own_bytes", sum(own.values()))  # the class is frozen to everyone else
        object.__setattr__(self, "adapters", Adapters(self.parts, self.side, self.device.value))
        # Counted once: other threads ask for the cost of a prompt while a LoRA is put between the layers.
        object.__setattr__(self, "_multiplied", multiplied_weights(self.parts))
        object.__setattr__(self, "_calls", PipelineCalls(self.side, self.parts, self.device.value))
        object.__setattr__(self, "_facts", _facts_of(self.parts))
        object.__setattr__(self, "_layers", layers_of(models))

    @classmethod
    def load(
        cls,
        source: str | Path,
        options: EngineOptions | None = None,
        *,
        name: str | None = None,
        limits: TextLimits | None = None,
        quantisation: str | None = None,
    ) -> TextEngine:
        """Loads the text side of a pipeline, from the hub if it is not on this machine.

        Args:
            source: A folder with a ``model_index.json``, or ``owner/name`` on the hub.
            options: Device and dtype.
            name: What to call it in errors.
            limits: What one request may hold.
            quantisation: One of :data:`hybridge.models.QUANTISATIONS`, for the large encoders; None keeps the
                weights as they are in the files.

        Raises:
            ModelUnavailable: when it cannot be had, or is not what it should be.
            EngineFailure: when device, dtype or quantisation cannot be used.
            OutOfMemory: when there is no room for it.
        """
        options = options or EngineOptions()
        device = choose_device(options.device)
        repository = open_repository(source, name)
        release_memory()  # what models have left that went before
        parts = run_in_own_thread(lambda: loading.load_parts(repository, options.dtype, device.value, quantisation))
        return cls(repository, parts, device, limits or TextLimits())

    @staticmethod
    def expected_bytes(
        source: str | Path, options: EngineOptions | None = None, quantisation: str | None = None
    ) -> int:
        """``weights_bytes`` of an engine that is not loaded yet, at most; fetches the files if need be.

        Raises:
            ModelUnavailable: when they cannot be had.
        """
        options = options or EngineOptions()
        repository = open_repository(source)
        return loading.weights_bytes(repository, options.dtype, choose_device(options.device).value, quantisation)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all encoders, with those of the LoRA that they have."""
        return self._own_bytes + self.adapters.weights_bytes

    @property
    def can_be_offloaded(self) -> bool:
        """Whether :meth:`to_host` frees the device's memory; how libraries move quantised weights was not tried."""
        return self.device.value.type not in ("cpu", "mps") and not self.parts.quantised

    def to_host(self) -> None:
        """Move the weights to the host's memory, without the LoRA; nothing may run until :meth:`to_device`.

        Raises:
            OutOfMemory: when there is no room; the engine is of no use any more.
        """
        self._move(torch.device("cpu"))

    def to_device(self) -> None:
        """Move the weights back, which have the same bits as before.

        Raises:
            OutOfMemory: when there is no room; the engine is of no use any more.
        """
        self._move(self.device.value)
        release_memory()

    def _move(self, device: torch.device) -> None:
        with self._lock, map_torch_errors("moving text encoders", device):
            self.adapters.use(None)
            for model in self.parts.encoders.values():
                model.to(device)

    @property
    def side(self) -> TextSide:
        """What is known of the pipeline's text encoders."""
        return self.repository.side

    @property
    def dtype(self) -> Choice[torch.dtype]:
        """In which precision they are, and why in this one."""
        return self.parts.dtype

    @property
    def quantisation(self) -> str | None:
        """Which encoders are quantised, and how; None if none is."""
        return ", ".join(f"{name}: {kind}" for name, kind in self.parts.quantised.items()) or None

    @property
    def revision(self) -> str | None:
        """The commit of a snapshot of the hub."""
        return self.repository.revision

    def check(self, inputs: Mapping[str, object], images: Sequence[Any] = ()) -> None:
        """Whether a request can be answered; takes no memory and runs nothing.

        Args:
            inputs: As for :meth:`encode`.
            images: The same.

        Raises:
            RequestError: when it cannot; says what was seen, what was expected and what to try.
        """
        self._read(inputs, images)

    def flops(
        self, inputs: Mapping[str, object], convention: Convention = "diffusers", lora: Lora | None = None
    ) -> float:
        """About how many operations an answer takes: two for each token and weight, those of a LoRA included.

        Raises:
            RequestError: as for :meth:`check`.
        """
        read = read_inputs if convention == "diffusers" else read_comfy_inputs
        asked = read(inputs, self.side, self._facts, self.limits)
        own = flops(asked, self.side, self._multiplied, self._calls.default)
        return own if lora is None else own * (1 + lora.numbers / max(1, sum(self._multiplied.values())))

    def encode(
        self,
        inputs: Mapping[str, object],
        images: Sequence[Any] = (),
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        reserve: Reserve | None = None,
    ) -> Embeddings:
        """Prompts → what the pipeline's own ``encode_prompt`` makes of them, one embedding for each.

        Args:
            inputs: What the pipeline's ``__call__`` knows about text: ``prompt``, a text or a list of texts,
                ``negative_prompt``, …, and options such as ``max_sequence_length``.  An option that is absent takes
                the default of ``__call__``.  An absent ``negative_prompt`` means that guidance is off and no
                negative embeddings are wanted; None means what the pipeline does without a negative prompt.
            images: Pillow's pictures, for pipelines whose embeddings depend on them.
            progress: Called before every layer with (operations done, operations in total), about.  It may use
                other engines, but not this one.
            should_stop: Called before every layer; True ends the call.
            reserve: Called before every encoder with the bytes that the call takes at most up to the end of that
                encoder, beside the weights.  What it raises ends the call.

        Raises:
            Stopped: when ``should_stop`` returned True.
            RequestError: when the request cannot be answered as it stands.
            OutOfMemory: when the device has no room.
            EngineFailure: when an encoder fails.
        """
        asked = self._read(inputs, images)
        return self._run([asked], images, progress, should_stop, reserve)[0]

    def encode_together(
        self,
        several: Sequence[Mapping[str, object]],
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        reserve: Reserve | None = None,
    ) -> list[Embeddings]:
        """Several requests in one run → for each of them what :meth:`encode` gives, within rounding.

        Args:
            several: Requests with the same options and the same kinds of prompts, for a pipeline whose embeddings
                have a length that does not depend on the longest prompt.
            progress, should_stop, reserve: As for :meth:`encode`.

        Raises:
            HybridgeError: as :meth:`encode` does, for all of them.
        """
        asked = [self._read(inputs, ()) for inputs in several]
        return self._run(asked, (), progress, should_stop, reserve)

    def encode_as_comfyui(
        self,
        inputs: Mapping[str, object],
        *,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
        reserve: Reserve | None = None,
    ) -> Embeddings:
        """Prompts → the entries of ComfyUI's CONDITIONING for each.

        Args:
            inputs: As :func:`~.comfyui.read_comfy_inputs` takes them.
            progress, should_stop, reserve: As for :meth:`encode`.

        Raises:
            HybridgeError: as :meth:`encode` does, and for models without a known convention.
        """
        asked = read_comfy_inputs(inputs, self.side, self._facts, self.limits)
        with self._running(asked, progress, should_stop, reserve):
            return Embeddings(dict(encode_as_comfyui(asked, self.side, self.parts)))

    def _run(
        self,
        several: Sequence[Asked],
        images: Sequence[Any],
        progress: Progress | None,
        should_stop: ShouldStop | None,
        reserve: Reserve | None,
    ) -> list[Embeddings]:
        asked = together(several)
        pieces, truncated, groups = [], [], list(self._groups(asked))
        with self._running(asked, progress, should_stop, reserve):
            for indices in groups:
                made, cut = self._calls.encode(asked.some(indices), images)
                pieces.append(made)
                truncated += [replace(one, index=indices[one.index]) for one in cut]
            tensors = join(pieces, groups, self.side.layouts)
        parted = split(tensors, [one.count for one in several], self.side.layouts)
        answers, begin = [], 0
        for one, part in zip(several, parted, strict=True):
            own = [cut for cut in truncated if begin <= cut.index < begin + one.count]
            answers.append(Embeddings(part, tuple(replace(cut, index=cut.index - begin) for cut in own)))
            begin += one.count
        return answers

    @contextmanager
    def _running(
        self, asked: Asked, progress: Progress | None, should_stop: ShouldStop | None, reserve: Reserve | None
    ) -> Iterator[None]:
        """The encoders for one caller, who is told how far they are, and asked for memory."""
        work = flops(asked, self.side, self._multiplied, self._calls.default)
        what = f"encoding {asked.count} prompt(s)"
        with (
            self._lock,
            no_gradients(is_quantised=bool(self.parts.quantised)),
            failures_named(what, self.device.value),
            without_prompts_in_logs(self.parts.pipeline),
            told_between(self._layers, work, progress, should_stop),
            reserved(asked, self.side, self.parts, self._calls.default, reserve),
        ):
            yield

    def _read(self, inputs: Mapping[str, object], images: Sequence[Any]) -> Asked:
        asked = read_inputs(inputs, self.side, self._facts, self.limits)
        if bool(images) != (self.side.picture is not None):
            raise RequestError(
                f"{self.side.name} {'reads no' if images else 'needs a'} picture beside the prompt",
                saw=f"{len(images)} pictures",
            )
        return asked

    def _groups(self, asked: Asked) -> Iterator[list[int]]:
        """Prompts that are encoded together: all, but for pipelines in which an empty one changes the others."""
        everything = list(range(asked.count))
        if not self.side.separates_empty:
            yield everything
            return
        texts = [asked.prompts["prompt"], (asked.negatives or {}).get(f"{NEGATIVE_PREFIX}prompt")]
        kinds: dict[tuple[bool, ...], list[int]] = {}
        for index in everything:
            kind = tuple(bool(all_ and all_[index]) for all_ in texts)
            kinds.setdefault(kind, []).append(index)
        yield from kinds.values()


def _facts_of(parts: TextParts) -> Facts:
    counts = []
    for model in parts.encoders.values():
        config = getattr(model.config, "text_config", model.config)
        counts.append(int(getattr(config, "num_hidden_layers", 1)))
    least = min(counts, default=1)
    # The last hidden state of an encoder that was cut is not what it would be in the whole one.
    return Facts(states=least + 1, layers=least - 1 if parts.kept_layers else least)
