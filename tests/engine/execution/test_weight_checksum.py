"""Checksums of weights: whatever is written changes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hybridge.engine.execution.weight_checksum import checksums


class TestChecksums:
    @pytest.mark.parametrize("shape", [(1,), (3,), (511,), (512,), (1025,), (64, 64, 3, 3), (5, 7, 3, 3)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_every_place_counts(self, shape, dtype) -> None:
        tensor = torch.randn(shape).to(dtype)
        before = checksums([tensor])
        assert checksums([tensor.clone()]) == before
        flat = tensor.view(-1)
        for place in range(0, flat.numel(), max(1, flat.numel() // 7)):
            was = flat[place].clone()
            flat[place] = was + 1
            assert checksums([tensor]) != before
            flat[place] = was
        assert checksums([tensor]) == before
        if len(set(flat.tolist())) > 1:
            assert checksums([tensor.roll(1, 0) if len(tensor) > 1 else tensor.flip(-1)]) != before

    def test_wherever_they_lie(self) -> None:
        tensor = torch.randn(64, 64, 3, 3)
        last = tensor.to(memory_format=torch.channels_last)
        with_gaps = torch.randn(64, 128, 3, 3)[:, ::2]
        off_by_one = torch.randn(1001)[1:]
        for one in (last, with_gaps, off_by_one):
            before = checksums([one])
            assert checksums([one]) == before
            one.view(-1)[-1].add_(1) if one.is_contiguous() else one[-1, -1, -1, -1].add_(1)
            assert checksums([one]) != before
        assert checksums([tensor, last]) == [*checksums([tensor]), *checksums([last])]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(512,), (512, 512), (2048,), (16, 128, 3, 3)])
    def test_signs_count(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """The highest bits of two words would cancel each other in a sum modulo 2⁶⁴."""
        tensor = torch.randn(shape).to(dtype)
        before = checksums([tensor])
        for step in (1, 2, 4):
            every = tensor.view(-1)[step - 1 :: step]
            for negated in (every, every[:2]):
                negated.neg_()
                assert checksums([tensor]) != before
                negated.neg_()
        assert checksums([tensor]) == before

    @pytest.mark.parametrize(
        ("shape", "edit"),
        [
            ((512,), lambda tensor: tensor.roll(128)),
            ((512,), lambda tensor: tensor.view(4, 128).flip(0).reshape(-1)),
            ((512, 512), lambda tensor: tensor.T),
            ((512, 512), lambda tensor: tensor.flip(0)),
            ((1024, 512), lambda tensor: tensor.roll(2, 0)),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_permutations_count(
        self, shape: tuple[int, ...], edit: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
    ) -> None:
        tensor = torch.randn(shape).to(dtype)
        assert checksums([edit(tensor).contiguous()]) != checksums([tensor])
