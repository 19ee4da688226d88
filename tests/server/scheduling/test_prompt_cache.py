"""What the cache of text embeddings keeps, and by which address."""

from __future__ import annotations

import threading

import torch

from hybridge.protocol import PromptAnswer, PromptRequest, WireTensor
from hybridge.protocol.torch import from_torch
from hybridge.server.prompt_cache import PromptCache, key_of
from hybridge.server.scheduling.prompt_job import hash_of

FACTS = {"model": "a", "dtype": "bfloat16", "weights": "00", "torch": "2.13"}


def answer(numbers: int) -> PromptAnswer:
    return PromptAnswer({"prompt_embeds": from_torch(torch.zeros(1, numbers))}, {"prompt_embeds": "batch"})


def test_every_fact_and_every_input_changes_the_address() -> None:
    request = PromptRequest({"prompt": "a", "clip_skip": None})
    picture = WireTensor("uint8", (1, 1, 1, 3), b"abc")
    addresses = [key_of(FACTS, request, "")]
    addresses += [key_of({**FACTS, name: "other"}, request, "") for name in FACTS]
    addresses += [
        key_of(FACTS, PromptRequest(inputs), "")
        for inputs in ({"prompt": "a"}, {"prompt": ["a"], "clip_skip": None}, {"prompt": "", "clip_skip": None})
    ]
    wide = WireTensor("uint8", (1, 1, 2, 3), b"abcabc")
    addresses += [key_of(FACTS, request, hash_of(pictures)) for pictures in ([picture], [picture] * 2, [wide])]
    assert len(set(addresses)) == len(addresses)
    assert key_of(FACTS, PromptRequest({"clip_skip": None, "prompt": "a"}), "") == addresses[0]
    assert not any("a cat" in address for address in addresses)


def test_the_form_of_the_answer_does_not() -> None:
    one, other = PromptRequest({"prompt": "a"}), PromptRequest({"prompt": "a"}, (), True, "torch", "float16")
    assert key_of(FACTS, one, "") == key_of(FACTS, other, "")


def test_the_least_recently_used_leaves_first() -> None:
    cache = PromptCache(3 * 40)
    for name in "abc":
        cache.put(name, answer(10))
    assert cache.get("a") is not None
    cache.put("d", answer(10))
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.held_bytes == 120


def test_what_is_larger_than_all_is_not_kept() -> None:
    cache = PromptCache(40)
    cache.put("a", answer(10))
    cache.put("b", answer(11))
    assert cache.get("a") is not None
    assert cache.get("b") is None
    assert PromptCache(0).get("a") is None


def test_threads_keep_the_count_right() -> None:
    cache = PromptCache(1000)

    def work(worker: int) -> None:
        for turn in range(300):
            cache.put(f"{worker * turn % 50}", answer(turn % 7 + 1))
            cache.get(f"{turn % 50}")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = sum(kept.nbytes for kept in (cache.get(str(n)) for n in range(50)) if kept is not None)
    assert cache.held_bytes == held <= 1000
