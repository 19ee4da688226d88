"""Text embeddings on disk: they survive the server, and nothing in their folder can make a request fail."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from text_servers import case_of, saved, serving

from hybridge.protocol import PromptAnswer
from hybridge.protocol.torch import from_torch
from hybridge.server.prompt_disk_cache import PromptDiskCache

KEYS = [digit * 64 for digit in "abcdef"]


def answer(seed: int = 0, numbers: int = 100) -> PromptAnswer:
    tensor = torch.randn(1, numbers, generator=torch.Generator().manual_seed(seed))
    tensors = {"prompt_embeds": from_torch(tensor), "list": (from_torch(tensor), from_torch(tensor.bfloat16()))}
    return PromptAnswer(tensors, {"prompt_embeds": "batch", "list": "list"}, {"model": "a"}, {"prompt": (0,)})


def written(folder: Path, *answers: tuple[str, PromptAnswer], most_bytes: int = 2**20) -> None:
    """A cache that has written these, and has ended."""
    cache = PromptDiskCache(folder, most_bytes)
    for key, one in answers:
        cache.put(key, one)
    cache.close()


def contents(one: PromptAnswer) -> Any:
    flat = {name: (tensor.dtype, tensor.shape, bytes(tensor.data)) for name, tensor in one.flat().items()}
    return flat, dict(one.layouts), dict(one.metadata), dict(one.truncated)


def test_an_answer_survives_the_process(tmp_path: Path) -> None:
    written(tmp_path / "cache", (KEYS[0], answer()))
    cache = PromptDiskCache(tmp_path / "cache", 2**20)
    found = cache.get(KEYS[0])
    assert found is not None
    assert contents(found) == contents(answer())
    assert cache.get(KEYS[1]) is None
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert cache.held_bytes == file.stat().st_size
    cache.close()
    cache.put(KEYS[1], answer())  # which is too late
    assert len(list((tmp_path / "cache").iterdir())) == 1


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit_header(file: Path) -> None:
    before, after = (json.dumps(json.dumps({"prompt": [index]})).encode() for index in (0, 1))
    assert before in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(before, after))


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_link(file: Path) -> None:
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        edit_header,
        Path.unlink,
        replace_by_pipe,
        replace_by_link,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x80\x04pickle"),
        lambda file: file.write_bytes(bytes(2**21)),
        lambda file: file.rename(file.with_name(f"{KEYS[1]}.safetensors")),
    ],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_damaged_file_is_not_there(tmp_path: Path, damage: Callable[[Path], object], is_open: bool) -> None:
    written(tmp_path, (KEYS[0], answer()))
    file = tmp_path / f"{KEYS[0]}.safetensors"
    if is_open:  # the cache knows the file as it was
        cache = PromptDiskCache(tmp_path, 2**20)
        damage(file)
    else:
        damage(file)
        cache = PromptDiskCache(tmp_path, 2**20)
    assert cache.get(KEYS[0]) is None
    assert cache.get(KEYS[1]) is None
    cache.close()
    if not file.exists():
        written(tmp_path, (KEYS[0], answer(1)))
        again = PromptDiskCache(tmp_path, 2**20)
        found = again.get(KEYS[0])
        assert found is not None
        assert contents(found) == contents(answer(1))
        again.close()


def test_the_least_recently_used_leave_and_files_of_others_stay(tmp_path: Path) -> None:
    written(tmp_path, *((key, answer()) for key in KEYS[:3]))
    size = next(tmp_path.iterdir()).stat().st_size
    for index, key in enumerate(KEYS[:3]):
        os.utime(tmp_path / f"{key}.safetensors", (index, index))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "half.part").write_bytes(b"of a server that was killed")
    cache = PromptDiskCache(tmp_path, 3 * size)
    assert cache.get(KEYS[0]) is not None
    cache.put(KEYS[3], answer())
    cache.put(KEYS[4], answer(numbers=10_000))  # larger than all that may be kept
    cache.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.txt",
        *(f"{KEYS[index]}.safetensors" for index in (0, 2, 3)),
    }
    smaller = PromptDiskCache(tmp_path, 2 * size)
    assert smaller.held_bytes == 2 * size
    assert smaller.get(KEYS[2]) is None
    smaller.close()


def test_a_folder_that_disappears_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PromptDiskCache(tmp_path / "cache", 2**20)
    shutil.rmtree(tmp_path / "cache")
    cache.put(KEYS[0], answer())
    cache.close()
    assert cache.get(KEYS[0]) is None
    assert "the prompt cache cannot be written" in caplog.text


def test_an_answer_that_cannot_be_written_is_the_only_one_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    replace = os.replace

    def refuse_once(*paths: Any) -> None:
        monkeypatch.setattr(os, "replace", replace)
        raise MemoryError

    monkeypatch.setattr(os, "replace", refuse_once)
    written(folder, (KEYS[0], answer()), (KEYS[1], answer()))
    assert [file.stem for file in folder.iterdir()] == [KEYS[1]]  # no half file either
    assert "cannot be kept" in caplog.text


def test_a_server_answers_what_the_one_before_it_made(tmp_path: Path) -> None:
    spec = saved(case_of("LTXPipeline"), tmp_path)
    folder, answers = tmp_path / "cache", []
    body = {"prompt": ["xyzzy", "rain " * 200], "negative_prompt": "plugh", "max_sequence_length": 16}
    for _ in range(2):
        with serving([spec], cache_bytes=0, prompt_disk_cache=PromptDiskCache(folder, 2**20)) as address:
            answers.append(httpx.post(f"{address}/v1/tiny/prompt", json=body, timeout=60))
            other = httpx.post(f"{address}/v1/tiny/prompt", json={**body, "max_sequence_length": 8}, timeout=60)
            if len(answers) == 1:
                assert other.headers["hybridge-cache"] == "miss"
    assert [one.headers["hybridge-cache"] for one in answers] == ["miss", "hit"]
    assert answers[0].content == answers[1].content
    assert answers[0].headers["hybridge-warning"] == answers[1].headers["hybridge-warning"]
    files = list(folder.iterdir())
    assert len(files) == 2
    for file in files:
        assert not any(word in file.read_bytes() + file.name.encode() for word in (b"xyzzy", b"plugh", b"rain"))
        length = int.from_bytes(file.read_bytes()[:8], "little")
        about = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
        assert about["address"] == file.stem
        assert about["weights"]
