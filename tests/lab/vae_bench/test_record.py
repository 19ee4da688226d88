"""What follows from a record's measurements."""

from __future__ import annotations

import pytest

from hybridge.lab.harness.typed import parse
from hybridge.lab.vae_bench.record import RoofMeasurement, roof_of


class TestRoof:
    @staticmethod
    def round_(cached: float, large: float, matmul: float | None) -> RoofMeasurement:
        kept = {
            "task": "decode",
            "size": 512,
            "dtype": "float32",
            "round": 0,
            "flops": 1000 + 200 + 50,
            "convolutions": [
                {"flops": 1000, "flops_per_s": {"cached": cached, "large": large}},
                {"flops": 200, "flops_per_s": {"cached": 10.0, "large": 20.0}},
            ],
            "attention_flops": 50,
            "matmul_flops_per_s": matmul,
        }
        read: RoofMeasurement = parse(RoofMeasurement, kept)
        return read

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
