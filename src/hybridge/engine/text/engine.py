"""The facade: the text encoders of one pipeline on one device."""

from __future__ import annotations

import inspect
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
from ...models.text_side import NEGATIVE_PREFIX, Call
from ..machine.own_thread import run_in_own_thread
from ..memory.device_memory import release_memory
from ..options import Choice, EngineOptions, choose_device
from . import loading
from .checking import Asked, Facts, TextLimits, read_inputs, together
from .comfyui import encode_as_comfyui, read_comfy_inputs
from .cost import flops, tokens_of
from .embeddings import Embeddings, Truncation, truncations
from .failures import failures_named, without_prompts_in_logs
from .footprint import Reserve, reserved
from .joining import join, split
from .layers import Layer, Progress, ShouldStop, layers_of, told_between
from .loading import TextParts
from .lora import Adapters
from .pictures import PREPARED, Prepared
from .quantisation import held_bytes, no_gradients
from .repository import Repository, open_repository
from .tokenizers import fresh

#: What ``encode_prompt`` may be told, besides what a request says.
_PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")


@dataclass(frozen=True, slots=True)
class TextEngine:
    """The text side of a pipeline, ready.  Threads may share it: one encodes at a time.

    Attributes:
        repository: Where it came from.
        parts: The pipeline and its encoders.
        device: Where they are, and why there.
        limits: What one request may hold.
        weights_bytes: Of all encoders.
        adapters: The LoRA that the encoders have.
    """

    repository: Repository
    parts: TextParts
    device: Choice[torch.device]
    limits: TextLimits = field(default_factory=TextLimits)
    weights_bytes: int = field(init=False)
    adapters: Adapters = field(init=False, repr=False, compare=False)
    _facts: Facts = field(init=False, repr=False)
    _layers: tuple[Layer, ...] = field(init=False, repr=False, compare=False)
    _lock: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        models = self.parts.encoders.values()
        own = {id(one): held_bytes(one) for model in models for one in (*model.parameters(), *model.buffers())}
        object.__setattr__(self, "weights_bytes", sum(own.values()))  # the class is frozen to everyone else
        object.__setattr__(self, "adapters", Adapters(self.parts))
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

    def flops(self, inputs: Mapping[str, object], convention: Convention = "diffusers") -> float:
        """About how many operations an answer takes: two for each token and weight.

        Raises:
            RequestError: as for :meth:`check`.
        """
        read = read_inputs if convention == "diffusers" else read_comfy_inputs
        asked = read(inputs, self.side, self._facts, self.limits)
        return flops(asked, self.side, self.parts, self._default)

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
                made, cut = self._encode(asked.some(indices), images)
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
        work, what = flops(asked, self.side, self.parts, self._default), f"encoding {asked.count} prompt(s)"
        with (
            self._lock,
            no_gradients(is_quantised=bool(self.parts.quantised)),
            failures_named(what, self.device.value),
            without_prompts_in_logs(self.parts.pipeline),
            told_between(self._layers, work, progress, should_stop),
            reserved(asked, self.side, self.parts, self._default, reserve),
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

    def _encode(
        self, asked: Asked, images: Sequence[Any]
    ) -> tuple[dict[str, torch.Tensor | list[torch.Tensor]], list[Truncation]]:
        tensors: dict[str, torch.Tensor | list[torch.Tensor]] = {}
        truncated: list[Truncation] = []
        pictures: Prepared = ({}, {})
        if self.side.picture:
            pictures = PREPARED[self.side.picture](self.parts.pipeline, images, asked.options)
        negatives = self._negatives(asked)
        for call in self.side.calls:
            texts: dict[str, list[str] | None] = dict(asked.prompts)
            guided = call.negative == "argument" and negatives is not None
            if call.negative == "argument":
                texts |= negatives or dict.fromkeys(self.side.negatives)
            self._call(call, texts, asked, guided, pictures[0], "", tensors, truncated)
            if call.negative == "call" and negatives is not None:
                instead = {name.removeprefix(NEGATIVE_PREFIX): list_ for name, list_ in negatives.items()}
                self._call(call, instead, asked, False, pictures[1], NEGATIVE_PREFIX, tensors, truncated)
        return tensors, truncated

    def _call(
        self,
        call: Call,
        texts: Mapping[str, list[str] | None],
        asked: Asked,
        guided: bool,
        pictures: Mapping[str, Any],
        prefix: str,
        tensors: dict[str, torch.Tensor | list[torch.Tensor]],
        truncated: list[Truncation],
    ) -> None:
        """Calls ``encode_prompt`` once, and adds what it gives under the names of ``__call__``'s arguments."""
        takes = inspect.signature(self.parts.pipeline.encode_prompt).parameters
        given: dict[str, Any] = {"device": self.device.value, "do_classifier_free_guidance": guided}
        given |= dict.fromkeys(_PER_PROMPT, 1)
        if self.side.takes_dtype:
            given["dtype"] = self.dtype.value
        given |= {name: self._default(name) for name in self._options() if name not in asked.options}
        given |= {**asked.options, **pictures}
        given = {name: value for name, value in given.items() if name in takes} | dict(call.arguments)
        if self.side.count:
            given[self.side.count] = asked.count
        # Copies, since pipelines write into the lists that they are given.
        given |= {name: None if all_ is None else list(all_) for name, all_ in texts.items() if name in takes}
        with fresh(self.parts.reads) as reads:
            made = self.parts.pipeline.encode_prompt(**given)
            truncated += truncations(reads, asked.count, prefix)
        known = {(one.prompt, one.index, one.tokenizer) for one in truncated}
        cut_before = self._cut_before(texts["prompt"] or [], asked, prefix)
        truncated += [one for one in cut_before if (one.prompt, one.index, one.tokenizer) not in known]
        for name, value in zip(call.returns, made, strict=True):
            is_wanted = guided or not (name or "").startswith(NEGATIVE_PREFIX)
            if name is not None and value is not None and is_wanted:
                tensors[prefix + name] = value

    def _cut_before(self, prompts: Sequence[str], asked: Asked, prefix: str) -> Iterator[Truncation]:
        """What pipelines cut before a tokenizer could, found by counting once more."""
        for encoder in self.side.encoders:
            if encoder.cut_with is None:
                continue
            tokenizer = getattr(self.parts.pipeline, encoder.tokenizer)
            most = tokens_of(encoder, asked, self._default)
            for index, text in enumerate(prompts):
                if len(tokenizer(text, add_special_tokens=False)["input_ids"]) + encoder.cut_with > most:
                    yield Truncation(f"{prefix}prompt", index, encoder.tokenizer, most)

    def _negatives(self, asked: Asked) -> dict[str, list[str] | None] | None:
        """The negative prompts to encode; None where the pipeline uses none."""
        guidance = self.side.guidance
        if asked.negatives is None or guidance is None:
            return None
        negatives = dict(asked.negatives)
        first = f"{NEGATIVE_PREFIX}prompt"
        if negatives[first] is not None:
            return negatives
        if guidance.only_if_given:
            return None
        text = guidance.text if self.side.parameter(first) is None else self._default(first)
        text = guidance.text if text is None else text
        negatives[first] = None if text is None else [text] * asked.count
        return negatives

    def _options(self) -> list[str]:
        return [one.name for one in self.side.parameters if one.kind not in ("prompt", "negative")]

    def _default(self, name: str) -> Any:
        """That of the pipeline's ``__call__``, which is not always that of its ``encode_prompt``."""
        return inspect.signature(type(self.parts.pipeline).__call__).parameters[name].default


def _facts_of(parts: TextParts) -> Facts:
    counts = []
    for model in parts.encoders.values():
        config = getattr(model.config, "text_config", model.config)
        counts.append(int(getattr(config, "num_hidden_layers", 1)))
    least = min(counts, default=1)
    # The last hidden state of an encoder that was cut is not what it would be in the whole one.
    return Facts(states=least + 1, layers=least - 1 if parts.kept_layers else least)
