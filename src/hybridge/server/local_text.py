"""Text encoders on the engines of this machine: their jobs' costs, runs and results."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..engine import EngineOptions, map_torch_errors
from ..engine.options import choose_device
from ..engine.text import Embeddings, TextEngine
from ..engine.text.fingerprint import fingerprint
from ..engine.text.layers import Progress, ShouldStop
from ..engine.text.lora import Lora, is_available, may_have
from ..engine.text.repository import open_repository
from ..errors import EngineFailure, HybridgeError
from ..models import QUANTISATIONS, TextSpec
from ..protocol import PROMPT_ITEM_BYTES, PromptAnswer, TensorLayout, WireTensor
from ..protocol.torch import from_torch
from .local_loras import LoraFolder
from .local_models import LocalModels
from .prompt_cache import PromptCache, key_of
from .prompt_disk_cache import PromptDiskCache
from .scheduling.backend import ModelInfo
from .scheduling.job import RunInfo, text_part
from .scheduling.model_slot import Offload, Source
from .scheduling.prompt_job import PromptJob, PromptResult

#: The cost of a prompt for a model that is not loaded: 512 tokens of five thousand million weights.
_GUESSED_FLOPS = 5e12

#: Jobs in one run, on devices where that is faster.
_BATCH = 8

#: Libraries whose versions can change the last bit of an embedding.
_LIBRARIES = ("torch", "transformers", "tokenizers", "diffusers")


class TextModels(LocalModels[TextEngine, PromptJob]):
    """The text encoders of a backend.

    Args:
        specs: The models; each is loaded when it is first needed.
        options: How they are loaded.
        cache_bytes: Size of the cache of answers.
        batch_limit: Jobs that may share a run; None decides for each device.
        on_disk: Keeps answers beyond the end of the process.
        lora_folder: Where the LoRAs are that requests may name.
    """

    def __init__(
        self,
        specs: Sequence[TextSpec],
        options: EngineOptions,
        cache_bytes: int,
        batch_limit: int | None = None,
        on_disk: PromptDiskCache | None = None,
        lora_folder: Path | None = None,
    ) -> None:
        self._specs = {text_part(spec.name): spec for spec in specs}
        self._options = options
        self._batch_limit, self._on_disk = batch_limit, on_disk
        self._loras = LoraFolder(lora_folder)
        self._answers = PromptCache(cache_bytes)
        self._facts: dict[str, dict[str, str]] = {}  # of what was loaded last
        self._fingerprints: dict[str, dict[str, Any]] = {}  # by the files' identity

    @property
    def parts(self) -> Sequence[str]:
        return list(self._specs)

    def sources(self) -> dict[str, Source[TextEngine]]:
        return {part: self._source(spec) for part, spec in self._specs.items()}

    def info(self, part: str) -> ModelInfo:
        spec, engine, state = self._specs[part], self.engine_of(part), self._cache.state_of(part)
        device = choose_device(self._options.device) if engine is None else engine.device
        facts = self._facts.get(spec.name, {})
        return ModelInfo(
            spec,
            str(device.value),
            device.reason,
            "" if engine is None else str(engine.dtype.value).removeprefix("torch."),
            "chosen when it is loaded" if engine is None else engine.dtype.reason,
            None if engine is None else engine.weights_bytes,
            state.state,
            state.failure,
            config=facts,
            loras=self._loras_for(spec),
            host_bytes=state.host_bytes,
        )

    def fingerprint(self, part: str) -> Mapping[str, Any]:
        spec = self._specs[part]
        try:
            identity = open_repository(spec.source, spec.name, is_local=True).identity
            if self._facts.get(spec.name, {}).get("weights", identity) != identity:
                return {"no_fingerprint": "its files have changed since they were loaded"}
            if identity not in self._fingerprints:
                self._fingerprints[identity] = fingerprint(spec.source, spec.name)
        except HybridgeError as error:
            return {"no_fingerprint": error.what}
        return {"fingerprint": {**self._fingerprints[identity], "weights": identity}}

    def kept_result(self, job: PromptJob) -> PromptResult | None:
        lora = self._lora_of(job)  # refused before it waits, or a model is loaded for it
        answer = None if self.engine_of(job.part) is None else self._answers.get(self._key(job, lora))
        return None if answer is None else PromptResult(answer, is_from_cache=True)

    def flops(self, job: PromptJob) -> float | None:
        engine = self.engine_of(job.part)
        return (
            None if engine is None else engine.flops(job.request.inputs, job.request.convention, self._lora_of(job))
        )

    def guessed_flops(self, job: PromptJob) -> float:
        return _GUESSED_FLOPS * job.batch

    def may_share(self, engine: TextEngine) -> int:
        """How many jobs may share a run.

        None where bits count: matrix products of another shape may round differently.  On a CPU none either: a
        run takes as long as its prompts one after the other, so the first would wait for the last.
        """
        if self._options.exactness == "bitwise":
            return 1
        if self._batch_limit is not None:
            return self._batch_limit
        return 1 if engine.device.value.type == "cpu" else _BATCH

    def perform(
        self,
        engine: TextEngine,
        jobs: Sequence[PromptJob],
        progress: Progress,
        should_stop: ShouldStop,
    ) -> Sequence[PromptResult]:
        lora = self._lora_of(jobs[0])  # once, for its file may change; jobs that share a run share it
        if self._on_disk is None:
            return self._encode(engine, jobs, lora, progress, should_stop)
        # Here and not on the event loop, because reading takes time.
        found = [self._on_disk.get(self._key(job, lora)) for job in jobs]
        rest = [job for job, answer in zip(jobs, found, strict=True) if answer is None]
        made = iter(self._encode(engine, rest, lora, progress, should_stop) if rest else ())
        results = []
        for job, answer in zip(jobs, found, strict=True):
            if answer is None:
                results.append(next(made))
            else:
                self._answers.put(self._key(job, lora), answer)
                results.append(PromptResult(answer, is_from_cache=True))
        return results

    def _encode(
        self,
        engine: TextEngine,
        jobs: Sequence[PromptJob],
        lora: Lora | None,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> Sequence[PromptResult]:
        job, several = jobs[0], [one.request.inputs for one in jobs]
        flops = sum(engine.flops(inputs, job.request.convention, lora) for inputs in several)
        pictures = [_picture(one) for one in job.pictures]
        peak_bytes = 0

        def reserve(wanted_bytes: int) -> None:
            nonlocal peak_bytes
            grow(wanted_bytes)
            peak_bytes = max(peak_bytes, wanted_bytes)

        how: dict[str, Any] = {"progress": progress, "should_stop": should_stop, "reserve": reserve}
        what, device = f"a {job.part} job", engine.device.value
        # A run of its own: once it is loaded, the LoRA counts among the model's weights.
        with self._cache.running(0) as grow, map_torch_errors(what, device):
            engine.adapters.use(lora, grow)
        with self._cache.running(0) as grow, map_torch_errors(what, device):
            if job.request.convention == "comfyui":
                made = [engine.encode_as_comfyui(inputs, **how) for inputs in several]
            elif len(jobs) == 1:
                made = [engine.encode(job.request.inputs, pictures, **how)]
            else:
                made = engine.encode_together(several, **how)
            facts = self._facts[job.spec.name]
            if job.request.convention != "diffusers":
                facts = {**facts, "convention": job.request.convention, "dtype": "float32"}
            answers = [answer_of(one, engine, facts) for one in made]
        for one, answer in zip(jobs, answers, strict=True):
            self._answers.put(self._key(one, lora), answer)
            if self._on_disk is not None:
                self._on_disk.put(self._key(one, lora), answer)
        ran = RunInfo("text", peak_bytes, flops)
        return [PromptResult(answer, ran=ran, shared_by=len(jobs)) for answer in answers]

    def _source(self, spec: TextSpec) -> Source[TextEngine]:
        def load() -> TextEngine:
            engine = TextEngine.load(spec.source, self._options, name=spec.name, quantisation=spec.quantisation)
            self._facts[spec.name] = facts_of(engine, spec)
            return engine

        def expected_bytes() -> int:
            return TextEngine.expected_bytes(spec.source, self._options, spec.quantisation)

        def can_move(engine: TextEngine) -> bool:
            return engine.can_be_offloaded

        offload = Offload(can_move, TextEngine.to_host, TextEngine.to_device)
        return Source(expected_bytes, load, offload)

    def _key(self, job: PromptJob, lora: Lora | None) -> str:
        # Where bits count, nothing will do that several requests shared a run for.
        facts = {**self._facts[job.spec.name], "exactness": self._options.exactness}
        if lora is not None:
            facts |= {"lora": lora.name, "lora_file": lora.identity, "lora_scale": repr(lora.scale)}
            facts["peft"] = importlib.metadata.version("peft") if is_available() else ""
        return key_of(facts, job.request, job.pictures_hash)

    def _loras_for(self, spec: TextSpec) -> Sequence[str]:
        names = self._loras.names()
        return names if names and _takes_loras(spec) else ()

    def _lora_of(self, job: PromptJob) -> Lora | None:
        return None if job.lora is None else self._loras.find(job.lora)

    def close(self) -> None:
        if self._on_disk is not None:
            self._on_disk.close()


@functools.cache
def _takes_loras(spec: TextSpec) -> bool:
    """Whether diffusers loads LoRAs into the text encoders of a model."""
    import diffusers

    return bool(may_have(getattr(diffusers, spec.class_name, None), spec.side))


def facts_of(engine: TextEngine, spec: TextSpec) -> dict[str, str]:
    """Return everything about a loaded model that can change a bit of its embeddings."""
    quantiser = [QUANTISATIONS[spec.quantisation]] if spec.quantisation else []
    return {
        "model": spec.name,
        "class": engine.repository.class_name,
        "revision": engine.revision or "",
        "weights": engine.repository.identity,
        "dtype": str(engine.dtype.value).removeprefix("torch."),
        **({"quantisation": engine.quantisation} if engine.quantisation else {}),
        "device": engine.device.value.type,
        "hybridge": __version__,
        **{name: importlib.metadata.version(name) for name in (*_LIBRARIES, *quantiser)},
    }


def answer_of(made: Embeddings, engine: TextEngine, facts: Mapping[str, str]) -> PromptAnswer:
    """What is sent of embeddings."""

    def wire(tensor: Any) -> WireTensor:
        return from_torch(tensor, PROMPT_ITEM_BYTES)

    tensors = {
        name: tuple(map(wire, value)) if isinstance(value, list) else wire(value)
        for name, value in made.tensors.items()
    }
    layouts: Mapping[str, TensorLayout] = engine.side.layouts
    if facts.get("convention") == "comfyui":  # whose texts differ in length
        layouts = dict.fromkeys(tensors, "list")
    truncated: dict[str, tuple[int, ...]] = {}
    for one in made.truncated:
        truncated[one.prompt] = tuple(sorted({*truncated.get(one.prompt, ()), one.index}))
    return PromptAnswer(tensors, {name: layouts[name] for name in tensors}, facts, truncated)


def _picture(pixels: WireTensor) -> Any:
    """Convert uint8 (1, H, W, 3) to a Pillow image."""
    from PIL import Image

    if pixels.dtype != "uint8":
        raise EngineFailure("a picture reached the text encoders unread", saw=pixels.dtype)
    _, height, width, _ = pixels.shape
    return Image.frombytes("RGB", (width, height), bytes(pixels.data))
