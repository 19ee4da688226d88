from __future__ import annotations

from hybridge.lab.harness.stats import summary


class TestSummary:
    def test_a_round_counts_once_however_many_samples_it_has(self) -> None:
        found = summary([[1.0] * 20, [5.0], [3.0, 3.5, 9.0]])
        assert found is not None
        assert (found.median_s, found.lowest_s, found.highest_s, found.samples) == (3.5, 1.0, 5.0, 3)

    def test_rounds_without_samples_do_not_count(self) -> None:
        assert summary([[], []]) is None
        found = summary([[], [2.0]])
        assert found is not None
        assert found.samples == 1
