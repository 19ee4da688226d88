"""The simulation against queueing theory, and against a record of a real server."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from commands import hybridge

from hybridge.errors import RequestError
from hybridge.lab.simulator.autoscaling import Autoscaling
from hybridge.lab.simulator.comparing import at_load, compare, front_limit
from hybridge.lab.simulator.costs import read_record
from hybridge.lab.simulator.fleet import Fleet, FleetOptions, Outcome
from hybridge.lab.simulator.workload import JobClass, poisson, read_trace

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"

#: A front that takes no time, on a link that takes none.
IDEAL = FleetOptions(link_bytes_per_s=math.inf, hop_s=0.0)

#: Jobs that all take a second, and jobs whose seconds are exponential with a mean of one.
STEADY = JobClass("steady", (1.0,))
RANDOM = JobClass("random", tuple(-math.log((n + 0.5) / 1000) for n in range(1000)))


def simulated(kind: JobClass, load: float, jobs: int = 40_000, **options: object) -> Outcome:
    made = replace(IDEAL, **options)  # type: ignore[arg-type] # as the tests name them
    rate = load * made.replicas / kind.mean_s
    return Fleet(made).open_loop(poisson([kind], rate, jobs / rate, 1))


def mean_wait(outcome: Outcome) -> float:
    return statistics.fmean(job.waited_s for job in outcome.jobs)


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize(("kind", "factor"), [(STEADY, 0.5), (RANDOM, 1.0)], ids=["M/D/1", "M/M/1"])
def test_one_replica_waits_as_the_formula_of_pollaczek_and_khinchine_says(
    kind: JobClass, factor: float, load: float
) -> None:
    outcome = simulated(kind, load, has_gaps=False)
    assert mean_wait(outcome) == pytest.approx(factor * load / (1 - load), rel=0.1)
    assert outcome.utilisation == pytest.approx(load, rel=0.05)


def test_many_replicas_wait_less_than_erlang_s_formula_allows_for_one_place_more() -> None:
    """M/M/c; a job that is given early to a replica may wait there beside a free one, which costs little."""
    load, number = 0.8, 10
    offered = load * number
    terms = [offered**n / math.factorial(n) for n in range(number)]
    last = offered**number / math.factorial(number) / (1 - load)
    exact = last / (sum(terms) + last) / (number * (1 - load))
    assert exact < mean_wait(simulated(RANDOM, load, replicas=number, has_gaps=False)) < exact + 0.6


def test_short_jobs_run_in_the_gaps_of_long_ones() -> None:
    kinds = [JobClass("short", (0.1,), 20), JobClass("long", (20.0,), 1)]
    waits = {}
    for has_gaps in (False, True):
        options = replace(IDEAL, has_gaps=has_gaps)
        outcome = Fleet(options).open_loop(poisson(kinds, 0.6 * 21 / 22, 20_000, 1))
        waits[has_gaps] = statistics.median(job.waited_s for job in outcome.jobs if job.kind is kinds[0])
        assert outcome.utilisation == pytest.approx(0.6, rel=0.15)
    assert waits[True] < waits[False] / 10


def test_a_job_that_comes_while_another_fills_the_gap_takes_the_next_one() -> None:
    """The run's seconds before the first gap were taken off twice, so that the second job found it too short."""
    kinds = [JobClass(name, (seconds,)) for name, seconds in (("long", 100.0), ("a", 10.0), ("b", 22.0))]
    arrivals = [(0.0, kinds[0]), (1.0, kinds[0]), (2.0, kinds[1]), (3.0, kinds[2])]
    outcome = Fleet(replace(IDEAL, warm_up=0.0)).open_loop(iter(arrivals))
    waited = {job.kind.name: job.waited_s for job in outcome.jobs if job.kind is not kinds[0]}
    assert waited == {"a": 0.0, "b": 9.0}


def test_a_closed_loop_is_as_fast_as_its_replicas() -> None:
    for number in (1, 4):
        outcome = Fleet(replace(IDEAL, replicas=number)).closed_loop([STEADY] * 16, 2000)
        assert outcome.per_second == pytest.approx(number, rel=0.02)


def test_the_front_bounds_what_many_replicas_do() -> None:
    kind = replace(STEADY, front_s=0.01)
    assert front_limit([kind], IDEAL) == pytest.approx(100)
    outcome = simulated(kind, 0.9, jobs=8000, replicas=400)
    assert outcome.per_second == pytest.approx(100, rel=0.1)
    assert outcome.front_busy > 0.9
    slow = replace(IDEAL, link_bytes_per_s=1e6)
    assert front_limit([replace(STEADY, nbytes=1e5)], slow) == pytest.approx(10)


def test_replicas_come_with_load_and_go_without_it() -> None:
    rules = Autoscaling(1, 8, start_s=20, down_s=60)
    rush = [(number * 0.25, STEADY) for number in range(2000)]  # four a second for 500 seconds
    calm = [(500 + number * 10.0, STEADY) for number in range(100)]
    options = replace(IDEAL, autoscaling=rules, warm_up=0.0)
    scaled = Fleet(options).open_loop(iter([*rush, *calm]))
    fixed = Fleet(replace(options, autoscaling=None)).open_loop(iter([*rush, *calm]))
    assert 4 < scaled.most_replicas <= 8
    assert mean_wait(scaled) < mean_wait(fixed) / 5
    late = [job for job in scaled.jobs if job.arrived_s > 1000]
    assert max(job.waited_s for job in late) < 0.01
    assert scaled.replica_s < 8 * scaled.seconds * 0.6, "most of them left when the rush was over"


def test_equal_arguments_give_equal_results() -> None:
    first, second = (at_load([RANDOM], replace(IDEAL, replicas=3), 0.7, 3000) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("clients", ["1-client", "8-clients", "16-clients"])
def test_it_is_within_15_percent_of_a_real_server(clients: str) -> None:
    record = read_record(RECORDS / f"serve-starter-256-{clients}.json")
    for one in compare(record, record, FleetOptions(hop_s=0.0), 0.002):
        assert abs(one.error) < 0.15, one


def test_it_is_within_15_percent_of_two_real_replicas() -> None:
    record = read_record(RECORDS / "serve-starter-256-two-replicas.json")
    for one in compare(record, record, FleetOptions(replicas=2), 0.002):
        assert abs(one.error) < 0.15, one


def test_records_that_cannot_be_compared_are_refused() -> None:
    one, mixed = (read_record(RECORDS / f"serve-starter-{name}.json") for name in ("256-8-clients", "mixed"))
    for first, second in ((one, mixed), (mixed, one)):
        with pytest.raises(RequestError, match="different pictures"):
            compare(first, second, FleetOptions(), 0.002)
    with pytest.raises(RequestError, match="answered nothing"):
        compare(one, replace(one, measurements=()), FleetOptions(), 0.002)


def test_a_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("# second, kind\n2.5\n0.5,random\n\n1,steady\n")
    assert read_trace(path, [STEADY, RANDOM]) == [(0.5, RANDOM), (1.0, STEADY), (2.5, STEADY)]
    for text, line in (("1\nsoon\n", 2), ("-1\n", 1), ("nan\n", 1), ("1,unknown\n", 1)):
        path.write_text(text)
        with pytest.raises(RequestError, match=f"line {line} of the trace is no job"):
            read_trace(path, [STEADY, RANDOM])
    path.write_text("# nothing\n")
    with pytest.raises(RequestError, match="no jobs"):
        read_trace(path, [STEADY])
    with pytest.raises(RequestError, match="cannot be read"):
        read_trace(tmp_path / "none.csv", [STEADY])


def test_the_command_shows_a_row_for_each_number_of_replicas(tmp_path: Path) -> None:
    asked = ("--job picture=0.1 --replicas 1 --replicas 200", "--jobs 2000 --front-ms 2 --price 1.5")
    words = " ".join(asked).split()
    shown = hybridge("lab", "simulate", *words).stdout
    assert "one front has time for 62 replicas at this load" in shown
    assert "beyond it jobs wait for the front" in shown
    found = json.loads(hybridge("lab", "simulate", *words, "--json").stdout)
    assert [row["replicas"] for row in found["rows"]] == [1, 200]
    scaled = json.loads(hybridge("lab", "simulate", *words, "--autoscale", "1:4", "--rate", 30, "--json").stdout)
    assert 1 < scaled["rows"][0]["replicas"] <= 4
    shown = hybridge("lab", "simulate", "--job", "picture=0.1", "--replicas", 1, "--rate", 3).stdout
    assert "one front has time for 50 replicas that are busy all the time" in shown
    record = RECORDS / "serve-starter-256-8-clients.json"
    assert "answers a second" in hybridge("lab", "simulate", "--record", record, "--compare", record).stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "one of --record and --job is needed"),
        ("--job picture", "not a kind of job"),
        ("--job picture=0", "not a kind of job"),
        ("--job a=1 --record x.json", "one of --record and --job is needed"),
        ("--record nowhere.json", "no record of a server"),
        ("--job a=1 --replicas 0", "not a number of replicas"),
        ("--job a=1 --load 0", "load"),
        ("--job a=1 --autoscale 4:1", "no range of replicas"),
        ("--job a=1 --compare x.json", "--compare needs --record"),
    ],
)
def test_bad_input_is_refused(words: str, why: str) -> None:
    refused = hybridge("lab", "simulate", *words.split(), check=False)
    assert refused.returncode
    assert why in refused.stderr
