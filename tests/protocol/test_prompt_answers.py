"""Text embeddings on the wire: what comes back to the last bit, and what is refused."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from hybridge.errors import BadAnswer
from hybridge.protocol import (
    PROMPT_ITEM_BYTES,
    PromptAnswer,
    WireTensor,
    padding_of,
    read_prompt_answer,
    write_prompt_answer,
)
from hybridge.protocol.padding import Kept, drop_padding, kept_by_mask, kept_by_zeros, refill
from hybridge.protocol.safetensors_bytes import read_safetensors, write_safetensors
from hybridge.protocol.torch import from_torch, to_torch

MOST = 1 << 30


def examples(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, deadline=None)


DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
    "uint8": torch.uint8,
}


def tensor_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> WireTensor:
    numbers = torch.randint(0, 2 if dtype == "bool" else 100, shape, generator=torch.Generator().manual_seed(seed))
    return from_torch(numbers.to(DTYPES[dtype]), PROMPT_ITEM_BYTES)


def an_answer() -> PromptAnswer:
    return PromptAnswer(
        {
            "prompt_embeds": tensor_of((2, 8, 3), "bfloat16"),
            "prompt_attention_mask": tensor_of((2, 8), "bool"),
            "pooled_prompt_embeds": tensor_of((2, 5), "float32"),
            "ragged": (tensor_of((3, 2), "float16"), tensor_of((5, 2), "float16", 1)),
            "prompt_embeds_llama3": tensor_of((3, 2, 4, 2), "bfloat16"),
            "prompt_cu_seqlens": tensor_of((3,), "int32"),
        },
        {
            "prompt_embeds": "batch",
            "prompt_attention_mask": "batch",
            "pooled_prompt_embeds": "batch",
            "ragged": "list",
            "prompt_embeds_llama3": "batch-axis-1",
            "prompt_cu_seqlens": "cu_seqlens",
        },
        {"model": "tiny", "dtype": "bfloat16"},
        {"prompt": (1,)},
    )


def alike(one: PromptAnswer, other: PromptAnswer) -> bool:
    first, second = one.flat(), other.flat()
    return (
        first.keys() == second.keys()
        and all(
            (first[name].dtype, first[name].shape, bytes(first[name].data))
            == (second[name].dtype, second[name].shape, bytes(second[name].data))
            for name in first
        )
        and (one.layouts, one.metadata, one.truncated) == (other.layouts, other.metadata, other.truncated)
    )


def test_an_answer_comes_back_as_it_was() -> None:
    assert alike(read_prompt_answer(write_prompt_answer(an_answer()), most_bytes=MOST), an_answer())


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(write_prompt_answer(an_answer()))
    loaded = load_file(path)
    assert loaded.keys() == an_answer().flat().keys()
    for name, tensor in an_answer().flat().items():
        assert torch.equal(loaded[name], to_torch(tensor))
        assert loaded[name].dtype == DTYPES[tensor.dtype]
    assert loaded["prompt_embeds"].data_ptr() % 2 == 0


def test_what_the_safetensors_library_writes_is_read() -> None:
    sent = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(3, 1, dtype=torch.bfloat16)}
    tensors, metadata = read_safetensors(save(sent, {"model": "tiny"}))
    assert metadata == {"model": "tiny"}
    assert all(torch.equal(to_torch(tensors[name]), sent[name]) for name in sent)


@given(
    shapes=st.dictionaries(
        st.from_regex(r"[a-z_]{1,9}", fullmatch=True),
        st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple), st.sampled_from(sorted(DTYPES))),
        min_size=1,
        max_size=5,
    )
)
@examples(80)
def test_tensors_of_every_dtype_and_shape_come_back(shapes: dict[str, tuple[tuple[int, ...], str]]) -> None:
    tensors = {name: tensor_of(shape, dtype) for name, (shape, dtype) in shapes.items()}
    back, metadata = read_safetensors(write_safetensors(tensors, {}))
    assert not metadata
    assert {n: (t.dtype, t.shape, bytes(t.data)) for n, t in back.items()} == {
        n: (t.dtype, t.shape, bytes(t.data)) for n, t in tensors.items()
    }


def with_header(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ABOUT = {"layouts": '{"a": "batch"}'}


def about(key: str, text: str) -> bytes:
    return with_header({"__metadata__": {**ABOUT, key: text}, "a": ENTRY})


STRANGE: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("a page", b"<html>502 Bad Gateway</html>"),
    ("a header beyond the body", struct.pack("<Q", 2**62) + b"{}"),
    ("a header of other bytes", with_header(b"\xff\xff")),
    ("a header that is a list", with_header([])),
    ("a deep header", with_header(b"[" * 100_000)),
    ("metadata of numbers", with_header({"__metadata__": {"a": 1}, "a": ENTRY})),
    ("no layouts", with_header({"a": ENTRY})),
    ("layouts that are no object", with_header({"__metadata__": {"layouts": "[]"}, "a": ENTRY})),
    ("an unknown layout", with_header({"__metadata__": {"layouts": '{"a": "rows"}'}, "a": ENTRY})),
    ("no tensor for a layout", with_header({"__metadata__": {"layouts": '{"b": "batch"}'}, "a": ENTRY})),
    ("no members for a list", with_header({"__metadata__": {"layouts": '{"a": "list"}'}, "a": ENTRY})),
    ("a tensor without a layout", with_header({"__metadata__": {"layouts": "{}"}, "a": ENTRY})),
    ("an unknown dtype", with_header({"__metadata__": ABOUT, "a": {**ENTRY, "dtype": "F64"}})),
    ("a dtype that is a list", with_header({"__metadata__": ABOUT, "a": {**ENTRY, "dtype": []}})),
    ("a shape of another size", with_header({"__metadata__": ABOUT, "a": {**ENTRY, "shape": [3]}})),
    ("a shape with zero", with_header({"__metadata__": ABOUT, "a": {**ENTRY, "shape": [0, 2]}})),
    ("negative offsets", with_header({"__metadata__": ABOUT, "a": {**ENTRY, "data_offsets": [-8, 0]}})),
    ("cut short", with_header({"__metadata__": ABOUT, "a": ENTRY}, bytes(7))),
    ("with more behind", with_header({"__metadata__": ABOUT, "a": ENTRY}, bytes(9))),
    ("tensors that overlap", with_header({"__metadata__": ABOUT, "a": ENTRY, "b": ENTRY})),
    ("padding of nothing", about("padding", '{"b": [2, [[0, 2]]]}')),
    ("other rows", about("padding", '{"a": [3, [[0, 1]]]}')),
    ("rows beyond", about("padding", '{"a": [1, [[0, 2]]]}')),
    ("rows backwards", about("padding", '{"a": [9, [[3, 1], [0, 4]]]}')),
    ("rows of text", about("padding", '{"a": ["3", [[0, 2]]]}')),
    ("no rows", about("padding", '{"a": 3}')),
    ("a terabyte of padding", about("padding", '{"a": [999999999999, [[0, 2]]]}')),
    ("truncated of text", about("truncated", '{"a": ["x"]}')),
]


@pytest.mark.parametrize("body", [row[1] for row in STRANGE], ids=[row[0] for row in STRANGE])
def test_answers_of_others_are_refused(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_prompt_answer(body, most_bytes=MOST)


@given(data=st.data())
@examples(200)
def test_an_answer_with_a_wrong_byte_raises_one_kind_of_error(data: st.DataObject) -> None:
    body = bytearray(write_prompt_answer(an_answer(), padding_of(an_answer(), {})))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadAnswer):
        read_prompt_answer(bytes(body[: data.draw(st.integers(0, len(body)))]), most_bytes=1 << 20)


# ----------------------------------------------------------------------------------------------- padding


def padded(lengths: list[int], rows: int, width: int, dtype: str, *, left: bool) -> tuple[WireTensor, WireTensor]:
    """Embeddings without a zero in them where a prompt is, numbers in their padding, and the mask."""
    numbers = torch.arange(1, len(lengths) * rows * width + 1).reshape(len(lengths), rows, width) % 100 + 1
    mask = torch.zeros(len(lengths), rows, dtype=torch.int64)
    for item, length in enumerate(lengths):
        mask[item, rows - length if left else 0 : rows if left else length] = 1
    return from_torch(numbers.to(DTYPES[dtype]), PROMPT_ITEM_BYTES), from_torch(mask, PROMPT_ITEM_BYTES)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    left=st.booleans(),
)
@examples(80)
def test_what_a_mask_excludes_comes_back_as_zeros(lengths: list[int], dtype: str, left: bool) -> None:
    embeds, mask = padded(lengths, 6, 3, dtype, left=left)
    answer = PromptAnswer({"e": embeds, "m": mask}, {"e": "batch", "m": "batch"})
    padding = padding_of(answer, {"e": "m"})
    back = read_prompt_answer(write_prompt_answer(answer, padding), most_bytes=MOST).tensors
    expected = to_torch(embeds) if not sum(lengths) else to_torch(embeds) * to_torch(mask).unsqueeze(-1)
    assert torch.equal(to_torch(back["e"]), expected.to(DTYPES[dtype]))  # type: ignore[arg-type]
    assert torch.equal(to_torch(back["m"]), to_torch(mask))  # type: ignore[arg-type]


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    dtype=st.sampled_from(sorted(DTYPES)),
)
@examples(80)
def test_zeros_at_the_end_come_back_to_the_last_bit(lengths: list[int], shape: tuple[int, ...], dtype: str) -> None:
    numbers = torch.zeros(len(lengths), 5, *shape)
    for item, length in enumerate(lengths):
        numbers[item, :length] = 1
    answer = PromptAnswer({"e": from_torch(numbers.to(DTYPES[dtype]), PROMPT_ITEM_BYTES)}, {"e": "batch"})
    body = write_prompt_answer(answer, padding_of(answer, {}))
    assert alike(read_prompt_answer(body, most_bytes=MOST), answer)
    kept = kept_by_zeros(answer.flat()["e"])
    assert kept is not None
    assert [end for _, end in kept.ranges] == lengths


def test_a_minus_zero_is_not_left_out() -> None:
    kept = kept_by_zeros(from_torch(torch.tensor([[1.0, -0.0, 0.0]]), PROMPT_ITEM_BYTES))
    assert kept == Kept(3, ((0, 2),))


def test_zeros_are_found_across_pieces() -> None:
    numbers = torch.zeros(1, 300_000, dtype=torch.uint8)
    for last in (0, 1, 65_535, 65_536, 299_999):
        numbers[0, last] = 1
        assert kept_by_zeros(from_torch(numbers)) == Kept(300_000, ((0, last + 1),))
    assert kept_by_zeros(from_torch(numbers * 0)) == Kept(300_000, ((0, 0),))


def test_a_mask_with_a_hole_leaves_nothing_out() -> None:
    assert kept_by_mask(tensor_from([[1, 0, 1]])) is None
    assert kept_by_mask(tensor_from([[0, 1, 0], [1, 1, 1]])) == Kept(3, ((1, 2), (0, 3)))


def tensor_from(rows: list[list[int]]) -> WireTensor:
    return from_torch(torch.tensor(rows), PROMPT_ITEM_BYTES)


def test_lists_and_other_layouts_are_sent_whole() -> None:
    zeros = tensor_from([[0, 0], [1, 0]])
    answer = PromptAnswer({"a": (zeros,), "b": zeros}, {"a": "list", "b": "batch-axis-1"})
    assert not padding_of(answer, {})


def test_a_mask_of_other_rows_is_not_used() -> None:
    answer = PromptAnswer(
        {"e": tensor_from([[1, 1, 0]]), "m": tensor_from([[1, 0]])}, {"e": "batch", "m": "cu_seqlens"}
    )
    assert padding_of(answer, {"e": "m"}) == {"e": Kept(3, ((0, 2),))}


def test_all_padding_of_an_answer_together_is_bounded() -> None:
    answer = PromptAnswer(
        {name: from_torch(torch.eye(1, 1000), PROMPT_ITEM_BYTES) for name in ("a", "b")},
        {"a": "batch", "b": "batch"},
    )
    body = write_prompt_answer(answer, padding_of(answer, {}))
    assert len(body) < 1000
    assert alike(read_prompt_answer(body, most_bytes=8000), answer)
    with pytest.raises(BadAnswer, match="4000 bytes, padding included"):
        read_prompt_answer(body, most_bytes=7999)


def test_rows_of_another_tensor_are_a_mistake_of_the_caller() -> None:
    drop: Callable[..., object] = drop_padding
    with pytest.raises(ValueError, match="has other rows"):
        drop(tensor_from([[1, 2]]), Kept(3, ((0, 1),)))
    assert refill(tensor_of((1, 2), "float32"), Kept(2, ((0, 1),)), most_bytes=99).shape == (1, 2, 2)
