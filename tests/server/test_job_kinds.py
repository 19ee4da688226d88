"""A kind of job of which the server knows nothing: the queue, the device thread and the model cache handle it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hybridge.models import CATALOGUE
from hybridge.protocol import HttpResponse, Task
from hybridge.server.local_backend import LocalBackend
from hybridge.server.local_models import LocalModels
from hybridge.server.scheduling.backend import ModelInfo
from hybridge.server.scheduling.job import Job, Result
from hybridge.server.scheduling.model_slot import Source


@dataclass(frozen=True, slots=True)
class Word(Result):
    word: str


@dataclass(frozen=True, slots=True)
class WordJob(Job[Word]):
    word: str

    @property
    def task(self) -> Task:
        return "prompt"

    @property
    def part(self) -> str:
        return "speaker"

    @property
    def batch(self) -> int:
        return 1

    @property
    def nbytes(self) -> int:
        return len(self.word)

    @property
    def result_bytes(self) -> int:
        return len(self.word)

    def is_quick_to_write(self, _: Word) -> bool:
        return True

    def write(self, result: Word) -> HttpResponse:
        return HttpResponse(200, {}, result.word.encode())


class Speaker:
    weights_bytes = 3

    def speak(self, word: str) -> str:
        return word.upper()


class Speakers(LocalModels[Speaker, WordJob]):
    @property
    def parts(self) -> Sequence[str]:
        return ["speaker"]

    def sources(self) -> Mapping[str, Source[Speaker]]:
        return {"speaker": Source(lambda: Speaker.weights_bytes, Speaker)}

    def info(self, part: str) -> ModelInfo:
        return ModelInfo(
            CATALOGUE["sd-v1"], "cpu", "", "", "", Speaker.weights_bytes, self._cache.state_of(part).state
        )

    def flops(self, job: WordJob) -> float | None:
        return None if self.engine_of(job.part) is None else 1.0

    def guessed_flops(self, job: WordJob) -> float:
        return float(job.nbytes)

    def perform(
        self,
        engine: Speaker,
        jobs: Sequence[WordJob],
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Sequence[Word]:
        assert not should_stop()
        progress(1, 1)
        return [Word(engine.speak(job.word)) for job in jobs]


def test_a_third_kind_is_loaded_and_run_like_the_others() -> None:
    backend = LocalBackend({}, others=[Speakers()])
    try:
        assert [info.state for info in backend.info()] == ["cold"]
        job = WordJob(CATALOGUE["sd-v1"], "hello")
        result = asyncio.run(backend.run(job))
        assert job.write(result).body == b"HELLO"
        assert set(result.milliseconds) == {"queue", "load", "device"}
        assert [info.state for info in backend.info()] == ["loaded"]
        assert (backend.load().loads, backend.load().weights_bytes) == ({"speaker": 1}, 3)
    finally:
        backend.close()
