"""Tables of simulations, and a simulation beside the record of the same load on a real server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from ...errors import RequestError
from ..harness.stats import percentile
from ..serve_bench.load_generator import OK
from ..serve_bench.record import ServeRecord
from .costs import kinds_of, served
from .fleet import Fleet, FleetOptions, Outcome
from .workload import MOST_JOBS, JobClass, mean_seconds, poisson

#: A load lasts as long as so many of its longest jobs, at least.
_LEAST_TURNS = 20

#: Percentiles that are shown.
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Row:
    """One simulation in numbers.

    Attributes:
        replicas: The highest number of them.
        rate: Jobs in a second that were answered.
        waited_s: Percentiles of waiting.
        wall_s: Percentiles of the whole time.
        utilisation, front_busy, link_busy: See :class:`.Outcome`.
        replica_hours: For each hour of the load: the mean number of replicas.
    """

    replicas: int
    rate: float
    waited_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    utilisation: float
    front_busy: float
    link_busy: float
    replica_hours: float


def row_of(outcome: Outcome) -> Row:
    """Return a simulation in numbers."""
    walls = [job.wall_s for job in outcome.jobs] or [0.0]
    waits = [job.waited_s for job in outcome.jobs] or [0.0]
    return Row(
        outcome.most_replicas,
        outcome.per_second,
        tuple(percentile(waits, share) for share in SHARES),
        tuple(percentile(walls, share) for share in SHARES),
        outcome.utilisation,
        outcome.front_busy,
        outcome.link_busy,
        outcome.replica_s / outcome.seconds if outcome.seconds else 0.0,
    )


def at_load(
    kinds: Sequence[JobClass], options: FleetOptions, share: float, jobs: int, rate: float | None = None
) -> Row:
    """Simulate replicas at a share of what they could do at most, or at a rate.

    Args:
        share: Of the replicas' capacity, 0 to 1.
        jobs: About as many come.
        rate: Jobs in a second, instead of ``share``.
    """
    rate = rate or share * options.replicas / mean_seconds(kinds)
    longest_s = max(max(kind.device_s) for kind in kinds)
    # Shorter than some of the longest jobs, a load says nothing; longer than that many jobs, it takes minutes here.
    seconds = min(max(jobs / rate, _LEAST_TURNS * longest_s), MOST_JOBS / rate)
    return row_of(Fleet(options).open_loop(poisson(kinds, rate, seconds, options.seed)))


def front_limit(kinds: Sequence[JobClass], options: FleetOptions, share: float = 1.0) -> float:
    """Return the number of replicas at which the front or its link has no time left."""
    weights = [kind.weight for kind in kinds]
    front_s = fmean([kind.front_s for kind in kinds], weights)
    link_s = fmean([kind.nbytes for kind in kinds], weights) / options.link_bytes_per_s
    slowest_s = max(front_s, link_s)
    return mean_seconds(kinds) / slowest_s / share if slowest_s > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A number, such as ``answers a second``, as it was measured and as the simulation has it."""

    name: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """How far off the simulation is: 0.1 for 10 % too high."""
        return self.simulated / self.measured - 1 if self.measured else 0.0


def compare(costs: ServeRecord, measured: ServeRecord, options: FleetOptions, front_s: float) -> list[Comparison]:
    """Simulate the load of one record with the seconds of another.

    Args:
        costs: A record of one server with one device, whose seconds are used.
        measured: A record of the fleet of ``options`` under the load that is simulated.
        front_s: Seconds of the front's processor for each job.

    Raises:
        RequestError: where the fleet answered nothing, or other pictures than the one device did.
    """
    kinds, asked, result = kinds_of(costs, front_s), measured.arguments, served(measured)
    if [kind.name for kind in kinds] != [kind.title for kind in asked.loads[0].kinds]:
        raise RequestError(
            "the records are of different pictures",
            saw=asked.loads[0].title,
            expected=", ".join(kind.name for kind in kinds),
        )
    if not result.answered():
        raise RequestError("the fleet answered nothing", saw=result.missing)
    fleet = Fleet(replace(options, seed=asked.seed, warm_up=0.0))
    if asked.rate is None:
        jobs = MOST_JOBS if asked.requests is None else asked.requests
        outcome = fleet.closed_loop(asked.dealt(asked.loads[0], kinds), jobs, asked.seconds)
    else:
        seconds = asked.seconds or len(result.answered()) / asked.rate
        outcome = fleet.open_loop(poisson(kinds, asked.rate, seconds, asked.seed))
    median_s, late_s, _ = row_of(outcome).wall_s
    walls = [sample.wall_s or 0.0 for sample in result.answered()]
    rates = [
        _rate([(one.at_s, one.at_s + (one.wall_s or 0.0)) for one in samples if one.outcome == OK])
        for samples in result.rounds
    ]
    simulated_rate = _rate([(job.arrived_s, job.ended_s) for job in outcome.jobs])
    return [
        Comparison("answers a second", median(rates), simulated_rate),
        Comparison("median seconds", percentile(walls, 0.5), median_s),
        Comparison("95th percentile", percentile(walls, 0.95), late_s),
    ]


def _rate(times: Sequence[tuple[float, float]]) -> float:
    """Answers in a second between the first request and the last, from (asked, answered).

    Not until the last answer: after the last request fewer and fewer jobs are under way.
    """
    if not times:
        return 0.0
    first, last = min(asked for asked, _ in times), max(asked for asked, _ in times)
    return sum(answered <= last for _, answered in times) / (last - first) if last > first else 0.0
