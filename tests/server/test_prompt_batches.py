"""Prompts of several clients in one run: who shares it, and that nobody is hurt by the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from text_servers import case_of, saved

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.errors import EngineFailure
from hybridge.models import TextSpec
from hybridge.protocol import PromptRequest
from hybridge.protocol.torch import to_torch
from hybridge.server.local_backend import LocalBackend
from hybridge.server.scheduling.prompt_job import PromptJob, PromptResult

WAIT_S = 60
LENGTH = {"max_sequence_length": 16}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TextSpec:
    return saved(case_of("LTXPipeline"), tmp_path_factory.mktemp("ltx"))


def backend_of(spec: TextSpec, **options: Any) -> LocalBackend:
    made = LocalBackend(
        {},
        texts=[spec],
        options=EngineOptions(device="cpu", **options),
        batch_limit=8,
        prompt_cache_bytes=2**24,
    )
    made.preload("tiny:text")
    return made


@pytest.fixture
def backend(spec: TextSpec) -> Iterator[LocalBackend]:
    made = backend_of(spec)
    yield made
    made.close()


def encoder_of(backend: LocalBackend) -> Any:
    engine = backend._models.peek("tiny:text")
    assert isinstance(engine, TextEngine)
    return engine.parts.encoders["text_encoder"]


def job(spec: TextSpec, prompt: Any, **inputs: Any) -> PromptJob:
    return PromptJob(spec, PromptRequest({"prompt": prompt, **LENGTH, **inputs}), client=str(prompt))


def play(backend: LocalBackend, jobs: list[PromptJob], *, leaving: tuple[int, ...] = ()) -> list[Any]:
    """The results of jobs that waited while another one ran; some leave meanwhile."""
    begun, go, runs = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        runs.append(None)
        begun.set()
        assert go.wait(WAIT_S)

    async def scene() -> list[Any]:
        first = asyncio.create_task(backend.run(job(jobs[0].spec, "first")))
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        waiting = [asyncio.create_task(backend.run(one)) for one in jobs]
        while backend.load().waiting < len(jobs):  # noqa: ASYNC110 - nothing tells of a put, and it takes one turn
            await asyncio.sleep(0)
        for index in leaving:
            waiting[index].cancel()
        while backend.load().waiting < len(jobs) - len(leaving):  # noqa: ASYNC110 - the same
            await asyncio.sleep(0)
        go.set()
        await first
        return await asyncio.gather(*waiting, return_exceptions=True)

    handle = encoder_of(backend).encoder.block[1].register_forward_pre_hook(hold)
    try:
        return asyncio.run(scene())
    finally:
        go.set()
        handle.remove()


def assert_right(spec: TextSpec, job: PromptJob, result: PromptResult) -> None:
    alone = TextEngine.load(spec.source, EngineOptions(device="cpu")).encode(job.request.inputs)
    assert result.answer.tensors.keys() == alone.tensors.keys()
    for name, expected in alone.tensors.items():
        found = result.answer.tensors[name]
        assert not isinstance(found, tuple)
        torch.testing.assert_close(to_torch(found), expected, rtol=1e-5, atol=1e-5)
    places = {one.index for one in alone.truncated}
    assert set(result.answer.truncated.get("prompt", ())) == places


def test_prompts_of_one_kind_share_a_run_and_get_their_own_answers(backend: LocalBackend, spec: TextSpec) -> None:
    long = "rain " * 40
    jobs = [job(spec, "a"), job(spec, ["b", long]), job(spec, "c", max_sequence_length=8), job(spec, long)]
    jobs += [job(spec, "d", negative_prompt=None), job(spec, "")]
    results = play(backend, jobs)
    assert [result.shared_by for result in results] == [4, 4, 1, 4, 1, 4]
    for one, result in zip(jobs, results, strict=True):
        assert_right(spec, one, result)
    again = [asyncio.run(backend.run(one)) for one in jobs]
    assert [result.is_from_cache for result in again] == [True] * len(jobs)
    assert [result.answer for result in again] == [result.answer for result in results]


def test_who_leaves_takes_nobody_along(backend: LocalBackend, spec: TextSpec) -> None:
    jobs = [job(spec, "a"), job(spec, "b"), job(spec, "c")]
    first, left, last = play(backend, jobs, leaving=(1,))
    assert isinstance(left, asyncio.CancelledError)
    assert first.shared_by == last.shared_by == 2
    assert_right(spec, jobs[0], first)
    assert_right(spec, jobs[2], last)


def test_what_fails_fails_alone(backend: LocalBackend, spec: TextSpec) -> None:
    engine = backend._models.peek("tiny:text")
    assert isinstance(engine, TextEngine)
    poison = engine.parts.pipeline.tokenizer("poison")["input_ids"]

    def refuse(_: Any, given: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", given[0] if given else None)
        if any(row[: len(poison)] == poison for row in ids.tolist()):
            raise RuntimeError("an encoder's failure")

    handle = encoder_of(backend).register_forward_pre_hook(refuse, with_kwargs=True)
    jobs = [job(spec, "a"), job(spec, "poison"), job(spec, "c")]
    try:
        first, failed, last = play(backend, jobs)
    finally:
        handle.remove()
    assert isinstance(failed, EngineFailure)
    assert_right(spec, jobs[0], first)
    assert_right(spec, jobs[2], last)


def test_where_bits_count_nothing_is_shared(spec: TextSpec) -> None:
    backend = backend_of(spec, exactness="bitwise")
    jobs = [job(spec, "a"), job(spec, "b")]
    try:
        results = play(backend, jobs)
    finally:
        backend.close()
    engine = TextEngine.load(spec.source, EngineOptions(device="cpu"))
    for one, result in zip(jobs, results, strict=True):
        assert result.shared_by == 1
        expected = engine.encode(one.request.inputs).tensors["prompt_embeds"]
        assert torch.equal(to_torch(result.answer.tensors["prompt_embeds"]), expected)


def test_who_may_share_a_run(spec: TextSpec) -> None:
    own = job(spec, "a").batch_key
    assert own == job(spec, ["b", "c"]).batch_key == job(spec, "").batch_key is not None
    others = [
        job(spec, "a", negative_prompt=None),
        job(spec, "a", negative_prompt="b"),
        job(spec, "a", max_sequence_length=8),
        PromptJob(TextSpec("other", spec.source, spec.class_name), job(spec, "a").request),
    ]
    assert len({own, *(other.batch_key for other in others)}) == 5
    assert job(spec, ["a"] * 5).batch_key is None
    for name in ("QwenImagePipeline", "Kandinsky5T2IPipeline", "HunyuanImagePipeline", "QwenImageEditPipeline"):
        assert job(TextSpec("tiny", "", name), "a").batch_key is None
    flux = TextSpec("tiny", "", "FluxPipeline")
    keys = [job(flux, "a", prompt_2=second).batch_key for second in (None, "", "b", "c")]
    assert keys[0] == keys[1] != keys[2] == keys[3]
