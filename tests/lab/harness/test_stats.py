from __future__ import annotations

import pytest

from hybridge.lab.harness.stats import roof_of, summary


class TestSummary:
    def test_a_round_counts_once_however_many_samples_it_has(self) -> None:
        found = summary([[1.0] * 20, [5.0], [3.0, 3.5, 9.0]])
        assert found is not None
        assert (found.median_s, found.lowest_s, found.highest_s, found.count) == (3.5, 1.0, 5.0, 3)

    def test_rounds_without_samples_do_not_count(self) -> None:
        assert summary([[], []]) is None
        found = summary([[], [2.0]])
        assert found is not None
        assert found.count == 1


class TestRoof:
    @staticmethod
    def round_(cached: float, large: float, matmul: float | None) -> dict[str, object]:
        return {
            "flops": 1000 + 200 + 50,
            "convolutions": [
                {"flops": 1000, "flops_per_s": {"cached": cached, "large": large}},
                {"flops": 200, "flops_per_s": {"cached": 10.0, "large": 20.0}},
            ],
            "attention_flops": 50,
            "matmul_flops_per_s": matmul,
        }

    def test_every_shape_runs_at_the_best_speed_of_any_round(self) -> None:
        roof = roof_of([self.round_(100, 50, 25), self.round_(40, 200, 10)])
        assert roof is not None
        assert roof.seconds == pytest.approx(1000 / 200 + 200 / 20 + 50 / 25)
        assert roof.convolution_flops_per_s == pytest.approx(1200 / 15)
        assert (roof.flops, roof.matmul_flops_per_s) == (1250, 25)

    def test_without_attention_there_are_only_convolutions(self) -> None:
        roof = roof_of([self.round_(100, 50, None)])
        assert roof is not None
        assert roof.matmul_flops_per_s is None
        assert roof.seconds == pytest.approx(1000 / 100 + 200 / 20)

    def test_nothing_measured_is_no_roof(self) -> None:
        assert roof_of([]) is None
