"""The waiting line by itself: order, fairness, gaps, bounds.  All of it is arithmetic, and takes no time."""

from __future__ import annotations

import pytest

from hybridge.errors import Overloaded, ShuttingDown
from hybridge.server.scheduling.cost_model import CostModel
from hybridge.server.scheduling.queue import FairQueue, QueuedJob, QueueLimits


def line(**limits: float) -> FairQueue[str]:
    return FairQueue(QueueLimits(**limits))  # type: ignore[arg-type]


def drain(waiting: FairQueue[str]) -> list[str]:
    """Serves everybody, one after the other."""
    served = []
    while len(waiting):
        place = waiting.take()
        assert place is not None
        waiting.end(place, place.cost_s)
        served.append(place.item)
    return served


class TestOrder:
    def test_first_in_first_out_within_a_client(self) -> None:
        waiting = line()
        for item in "abc":
            waiting.put(item, client="one", cost_s=1)
        assert [place.item for place in waiting.waiting()] == ["a", "b", "c"]
        assert drain(waiting) == ["a", "b", "c"]

    def test_equal_clients_take_turns(self) -> None:
        waiting = line()
        for item in ("a1", "a2", "a3"):
            waiting.put(item, client="a", cost_s=1)
        for item in ("b1", "b2"):
            waiting.put(item, client="b", cost_s=1)
        foretold = [place.item for place in waiting.waiting()]
        assert drain(waiting) == foretold == ["a1", "b1", "a2", "b2", "a3"]

    def test_a_client_of_large_jobs_gets_its_share_and_no_more(self) -> None:
        waiting = line()
        for number in range(3):
            waiting.put(f"LARGE{number}", client="large", cost_s=10)
        for number in range(24):
            waiting.put(f"small{number}", client="small", cost_s=1)
        served = drain(waiting)
        # Between two large jobs the other client gets ten small ones: the same time.
        first, second, third = (served.index(f"LARGE{number}") for number in range(3))
        assert (first, second, third) == (0, 11, 22)

    def test_nobody_saves_up_by_staying_away(self) -> None:
        waiting = line()
        for number in range(5):
            waiting.put(f"a{number}", client="a", cost_s=1)
        for _ in range(3):
            place = waiting.take()
            assert place is not None
            waiting.end(place, 1)
        for number in range(3):
            waiting.put(f"b{number}", client="b", cost_s=1)
        assert drain(waiting) == ["b0", "a3", "b1", "a4", "b2"]

    def test_the_account_is_charged_what_it_took_not_what_was_expected(self) -> None:
        waiting = line()
        for item in ("a1", "a2"):
            waiting.put(item, client="a", cost_s=1)
        for item in ("b1", "b2", "b3"):
            waiting.put(item, client="b", cost_s=1)
        place = waiting.take()
        assert place is not None
        waiting.end(place, 2.5)
        assert drain(waiting) == ["b1", "b2", "b3", "a2"]

    def test_who_leaves_is_charged_nothing(self) -> None:
        waiting = line()
        places = [waiting.put(f"a{number}", client="a", cost_s=5) for number in range(3)]
        waiting.put("b", client="b", cost_s=1)
        assert waiting.leave(places[0])
        assert not waiting.leave(places[0])
        assert [place.item for place in waiting.waiting()] == ["a1", "b", "a2"]

    def test_what_is_not_ready_is_passed_over(self) -> None:
        waiting = line()
        waiting.put("cold", client="a", cost_s=1)
        waiting.put("warm", client="a", cost_s=1)
        place = waiting.take(lambda item: item == "warm")
        assert place is not None
        assert place.item == "warm"

    def test_put_back_is_as_if_never_taken(self) -> None:
        waiting = line()
        for item in ("a1", "a2"):
            waiting.put(item, client="a", cost_s=1)
        waiting.put("b", client="b", cost_s=1)
        place = waiting.take()
        assert place is not None
        assert waiting.put_back(place)
        assert drain(waiting) == ["a1", "b", "a2"]

    def test_those_alike_are_served_together_and_charged_each(self) -> None:
        waiting = line()
        for item, client in (("x1", "a"), ("y", "b"), ("x2", "c"), ("x3", "a")):
            waiting.put(item, client=client, cost_s=1)
        first = waiting.take()
        assert first is not None
        joined = waiting.join(lambda item: item.startswith("x"), most=2)
        assert [place.item for place in (first, *joined)] == ["x1", "x2", "x3"]
        assert [place.item for place in waiting.waiting()] == ["y"]


class TestGaps:
    @staticmethod
    def begun(waiting: FairQueue[str], cost_s: float = 100, done: float = 0.1) -> QueuedJob[str]:
        """A large job, some of whose strips are done."""
        waiting.put("LARGE", client="large", cost_s=cost_s)
        outer = waiting.take()
        assert outer is not None
        waiting.advance(outer, done)
        return outer

    @staticmethod
    def gap(waiting: FairQueue[str], outer: QueuedJob[str]) -> list[str]:
        before, ran = waiting.arrivals, []
        is_worth_asking = waiting.is_short_waiting(outer)
        while (place := waiting.interrupt(outer, before=before)) is not None:
            waiting.end(place, place.cost_s)
            ran.append(place.item)
        assert is_worth_asking or not ran
        return ran

    def test_a_short_job_of_another_client_runs_in_the_next_gap(self) -> None:
        waiting = line()
        outer = self.begun(waiting)
        waiting.put("small", client="small", cost_s=1)
        assert self.gap(waiting, outer) == []  # it came while this strip was running, and has to let it finish
        waiting.advance(outer, 0.11)
        assert self.gap(waiting, outer) == ["small"]

    def test_a_job_that_is_not_much_shorter_than_the_rest_waits(self) -> None:
        waiting = line()
        outer = self.begun(waiting)
        waiting.put("half", client="small", cost_s=50)
        waiting.put("short", client="other", cost_s=20)
        waiting.advance(outer, 0.15)
        assert self.gap(waiting, outer) == ["short"]
        waiting.advance(outer, 0.9)
        waiting.put("late", client="late", cost_s=20)  # less would be won than lost
        waiting.advance(outer, 0.95)
        assert self.gap(waiting, outer) == []

    def test_nobody_is_asked_where_all_who_wait_take_as_long(self) -> None:
        waiting = line()
        outer = self.begun(waiting)
        assert not waiting.is_short_waiting(outer)
        waiting.put("equal", client="small", cost_s=100)
        assert not waiting.is_short_waiting(outer)
        waiting.put("short", client="other", cost_s=20)
        assert waiting.is_short_waiting(outer)
        waiting.advance(outer, 0.2)
        assert self.gap(waiting, outer) == ["short"]
        assert not waiting.is_short_waiting(outer)

    def test_who_comes_during_a_gap_waits_for_a_strip(self) -> None:
        waiting = line()
        outer = self.begun(waiting)
        waiting.put("first", client="large", cost_s=1)
        waiting.advance(outer, 0.2)
        before = waiting.arrivals
        waiting.put("second", client="large", cost_s=1)
        place = waiting.interrupt(outer, before=before)
        assert place is not None
        assert place.item == "first"
        assert waiting.interrupt(outer, before=before) is None
        assert self.gap(waiting, outer) == ["second"]

    def test_small_jobs_buy_no_more_than_their_clients_share(self) -> None:
        waiting = line(jobs=1000)
        outer = self.begun(waiting, done=0.0)
        for number in range(100):
            waiting.put(f"small{number}", client="flood", cost_s=1)
        ran = 0
        for strip in range(1, 11):  # a strip is one second of the large job's hundred
            waiting.advance(outer, strip / 100)
            ran += len(self.gap(waiting, outer))
        assert ran == 10

    def test_the_same_client_overtakes_itself_with_short_jobs(self) -> None:
        waiting = line()
        outer = self.begun(waiting)
        waiting.put("another LARGE", client="large", cost_s=100)
        for number in range(3):
            waiting.put(f"small{number}", client="large", cost_s=1)
        waiting.advance(outer, 0.2)
        assert self.gap(waiting, outer) == ["small0", "small1", "small2"]

    def test_gaps_nest_as_deep_as_costs_shrink(self) -> None:
        waiting = line()
        outer = self.begun(waiting)
        waiting.put("middle", client="middle", cost_s=20)
        waiting.advance(outer, 0.2)
        middle = waiting.interrupt(outer, before=waiting.arrivals)
        assert middle is not None
        for item, cost_s in (("not much shorter", 10), ("small", 2)):
            waiting.put(item, client=item, cost_s=cost_s)
        waiting.advance(middle, 0.1)
        assert self.gap(waiting, middle) == ["small"]
        assert sum(place.left_s for place in waiting.serving()) <= 100 * (1 + 1 / 3)


class TestBounds:
    def test_number(self) -> None:
        waiting = line(jobs=2)
        waiting.put("a", cost_s=4)
        waiting.put("b", cost_s=6)
        with pytest.raises(Overloaded, match="2 requests are waiting") as refused:
            waiting.put("c")
        # Half of the ten seconds that wait.
        assert refused.value.retry_after_s == 5
        outer = waiting.take()
        assert outer is not None
        waiting.advance(outer, 0.25)
        waiting.put("c", cost_s=4)
        with pytest.raises(Overloaded) as refused:
            waiting.put("d")
        assert refused.value.retry_after_s == 3 + 10 / 2

    def test_several_devices_are_sooner_done(self) -> None:
        for devices in (1, 4):
            waiting: FairQueue[str] = FairQueue(QueueLimits(jobs=1), devices=lambda devices=devices: devices)
            waiting.put("a", cost_s=8)
            with pytest.raises(Overloaded) as refused:
                waiting.put("b")
            assert refused.value.retry_after_s == 4 / devices

    def test_work(self) -> None:
        waiting = line(work_s=40)
        waiting.put("more than the bound, but alone", client="a", cost_s=100)
        with pytest.raises(Overloaded, match="100 seconds of work"):
            waiting.put("b", client="b", cost_s=1)

    def test_bytes(self) -> None:
        waiting = line(nbytes=1000)
        waiting.put("a", client="a", nbytes=600)
        with pytest.raises(Overloaded, match="memory"):
            waiting.put("b", client="b", nbytes=600)
        waiting.put("c", client="b", nbytes=400)

    def test_the_last_quarter_is_for_newcomers(self) -> None:
        waiting = line(jobs=8)
        for number in range(6):
            waiting.put(str(number), client="busy")
        with pytest.raises(Overloaded):
            waiting.put("7", client="busy")
        waiting.put("7", client="new")
        waiting.put("8", client="newer")
        with pytest.raises(Overloaded):
            waiting.put("9", client="newest")

    def test_the_patient_take_no_place_from_others(self) -> None:
        waiting = line(jobs=1)
        for number in range(3):
            waiting.put(f"patient{number}", is_patient=True)
        waiting.put("now")
        waiting.put("patient3", is_patient=True)
        assert len(waiting) == 5

    def test_who_leaves_frees_a_place(self) -> None:
        waiting = line(jobs=2)
        first = waiting.put("1")
        waiting.put("2")
        waiting.leave(first)
        waiting.put("3")
        assert drain(waiting) == ["2", "3"]

    def test_closing_gives_back_what_waited_and_refuses_more(self) -> None:
        waiting = line()
        waiting.put("1")
        waiting.put("2")
        assert waiting.close() == ["1", "2"]
        assert waiting.take() is None
        with pytest.raises(ShuttingDown):
            waiting.put("3")

    def test_accounts_of_clients_that_are_gone_are_forgotten(self) -> None:
        waiting = line()
        waiting.put("LARGE", client="large", cost_s=1e6)
        outer = waiting.take()
        assert outer is not None
        for number in range(2000):
            waiting.advance(outer, number / 4000)
            place = waiting.put(str(number), client=f"client{number}", cost_s=1)
            waiting.leave(place)
        assert len(waiting._accounts) <= 257


class TestPace:
    def test_it_learns_each_kind_and_guesses_by_all_of_them(self) -> None:
        pace = CostModel()
        pace.learn("sdxl decode", 1e12, 10.0)
        assert pace.seconds("sdxl decode", 2e12) == pytest.approx(20)
        assert pace.seconds("unseen", 1e11) == pytest.approx(1)
        pace.learn("sdxl decode", 1e12, 20.0)
        assert 10 < pace.seconds("sdxl decode", 1e12) < 20
        pace.learn("taesd decode", 1e10, 1.0)
        assert pace.seconds("taesd decode", 1e10) == pytest.approx(1)

    def test_a_tiny_job_does_not_make_hours_of_the_next_kind(self) -> None:
        pace = CostModel()
        pace.learn("text prompt", 1e6, 0.02)  # 5e7 FLOP/s, for it spends its time on other things
        assert pace.seconds("vae encode", 1e12) == pytest.approx(10, rel=0.1)  # as before anything was measured
        pace.learn("vae decode", 1e12, 2.0)
        assert pace.seconds("vae encode", 1e12) == pytest.approx(2.75, rel=0.01)
