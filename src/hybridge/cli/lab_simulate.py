"""``hybridge lab simulate``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..lab.simulator.autoscaling import Autoscaling
    from ..lab.simulator.comparing import Row
    from ..lab.simulator.fleet import FleetOptions
    from ..lab.simulator.workload import JobClass

#: Jobs of one simulation, by default.
_JOBS = 20_000


def simulate(
    record: Path = typer.Option(
        None,
        help="Record of `hybridge bench serve` on one device: its load, and what its jobs took.",
        show_default="--job instead",
    ),
    job: list[str] = typer.Option(
        [], help="NAME=SECONDS[:WEIGHT] on a device, instead of a record; may be repeated.", show_default="none"
    ),
    replicas: list[int] = typer.Option([1, 10, 100, 1000], help="A row of the table for each."),
    load: float = typer.Option(0.8, help="Share of what the replicas could do at most."),
    rate: float = typer.Option(None, help="Jobs in a second, instead of --load.", show_default="by --load"),
    trace: Path = typer.Option(
        None, help="File with a line SECOND or SECOND,KIND for each job, instead of jobs at random."
    ),
    jobs: int = typer.Option(_JOBS, help="Jobs of each row, about; more give steadier percentiles."),
    front_ms: float = typer.Option(2.0, help="Milliseconds of the front's processor for each job."),
    hop_ms: float = typer.Option(6.0, help="Milliseconds to a replica and back, besides the bytes."),
    link_gbit: float = typer.Option(10.0, help="Speed of the front's link in Gbit/s."),
    autoscale: str = typer.Option(
        None, help="LEAST:MOST replicas, by Ray Serve's rules, instead of --replicas.", show_default="fixed"
    ),
    start_s: float = typer.Option(60.0, help="Seconds until a new replica takes jobs."),
    price: float = typer.Option(None, help="Of a replica for an hour, in any currency.", show_default="not shown"),
    compare: Path = typer.Option(
        None, help="Record of a fleet under load: simulate the same from --record, and show both."
    ),
    compare_replicas: int = typer.Option(1, help="Replicas of that fleet."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """Say how long jobs would wait on many replicas, and from how many on the single front is the bottleneck."""
    from ..errors import RequestError
    from ..lab.harness.names import check_number
    from ..lab.simulator.costs import kinds_of, read_record
    from ..lab.simulator.fleet import FleetOptions
    from ..lab.simulator.workload import MOST_JOBS

    numbers = {"load": (load, 10.0), "rate": (rate, 1e6), "jobs": (jobs, MOST_JOBS), "link": (link_gbit, 1e6)}
    numbers |= {"replicas": (max(replicas, default=0), 100_000), "price": (price, 1e9), "start": (start_s, 86_400)}
    numbers |= {"replicas compared": (compare_replicas, 100_000)}
    for name, (value, highest) in numbers.items():
        check_number(name, value, highest)
    if min(replicas, default=0) < 1 or not 0 <= front_ms < 1e6 or not 0 <= hop_ms < 1e6:
        raise RequestError("a number is wrong", expected="replicas from 1 on, milliseconds from 0 on")
    if (record is None) == (not job):
        raise RequestError("one of --record and --job is needed", hint="hybridge bench serve --rivals hybridge")
    options = FleetOptions(1, link_gbit * 1e9 / 8, hop_ms / 1e3)
    kinds = [_job_of(text, front_ms / 1e3) for text in job] or kinds_of(read_record(record), front_ms / 1e3)
    if compare is not None:
        if record is None:
            raise RequestError("--compare needs --record", expected="the seconds of one device")
        _compare(record, compare, compare_replicas, options, front_ms / 1e3, as_json=as_json)
        return
    scaling = None if autoscale is None else _scaling_of(autoscale, start_s)
    rows = [
        _row(kinds, options, number, scaling, load=load, rate=rate, jobs=jobs, trace=trace)
        for number in ([scaling.least] if scaling else replicas)
    ]
    share = load if rate is None and trace is None else None
    _show(rows, kinds, options, price, share, as_json=as_json)


def _row(
    kinds: Sequence[JobClass],
    options: FleetOptions,
    number: int,
    scaling: Autoscaling | None,
    *,
    load: float,
    rate: float | None,
    jobs: int,
    trace: Path | None,
) -> Row:
    from dataclasses import replace

    from ..lab.simulator.comparing import at_load, row_of
    from ..lab.simulator.fleet import Fleet
    from ..lab.simulator.workload import read_trace

    options = replace(options, replicas=number, autoscaling=scaling)
    if trace is not None:
        return row_of(Fleet(options).open_loop(iter(read_trace(trace, kinds))))
    return at_load(kinds, options, load, jobs, rate)


def _job_of(text: str, front_s: float) -> JobClass:
    from ..errors import RequestError
    from ..lab.simulator.workload import JobClass

    name, _, rest = text.partition("=")
    seconds, separator, weight = rest.partition(":")
    try:
        found = JobClass(name, (float(seconds),), float(weight) if separator else 1.0, front_s)
    except ValueError:
        found = JobClass(name, (0.0,), 0.0)
    if not name or not 0 < found.device_s[0] < 86_400 or not 0 < found.weight < 1e9:
        raise RequestError("not a kind of job", saw=text[:60], expected="NAME=SECONDS[:WEIGHT]")
    return found


def _scaling_of(text: str, start_s: float) -> Autoscaling:
    from ..errors import RequestError
    from ..lab.simulator.autoscaling import Autoscaling
    from ..server.replica_settings import read_range

    try:
        least, most = read_range(text)
    except ValueError as error:
        raise RequestError("no range of replicas", saw=text[:60], expected=str(error)) from None
    return Autoscaling(least, most, start_s)


def _compare(
    record: Path, compared: Path, number: int, options: FleetOptions, front_s: float, *, as_json: bool
) -> None:
    import dataclasses
    import json
    from dataclasses import replace

    from ..lab.simulator.comparing import compare
    from ..lab.simulator.costs import read_record
    from .console import screen, show_table

    found = compare(read_record(record), read_record(compared), replace(options, replicas=number), front_s)
    if as_json:
        typer.echo(json.dumps([{**dataclasses.asdict(one), "error": one.error} for one in found], indent=2))
        return
    rows = [(one.name, f"{one.measured:.3g}", f"{one.simulated:.3g}", f"{one.error:+.1%}") for one in found]
    titles = ("measured", "simulated", "error")
    title = f"{number} replicas under the load of {compared.name}"
    show_table(screen(), ("", *titles), rows, title=title, numbers=titles)


def _show(
    rows: Sequence[Row],
    kinds: Sequence[JobClass],
    options: FleetOptions,
    price: float | None,
    load: float | None,
    *,
    as_json: bool,
) -> None:
    """Print the rows; ``load`` is None where jobs come at a rate of their own."""
    import dataclasses
    import json

    from ..lab.simulator.comparing import front_limit
    from ..lab.simulator.workload import mean_seconds
    from .console import screen, show_table

    limit = front_limit(kinds, options, load or 1.0)
    if as_json:
        typer.echo(json.dumps({"front_limit": limit, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
        return
    console = screen()
    names = ", ".join(f"{kind.name} {kind.mean_s:.3g} s × {kind.weight:g}" for kind in kinds)
    titles: tuple[str, ...] = ("replicas", "jobs/s", "wait p50", "p95", "p99")
    titles += ("devices busy", "front busy", "link busy")
    titles += () if price is None else ("cost/h", "cost/1000")
    table: list[tuple[Any, ...]] = []
    for row in rows:
        busy = (row.utilisation, row.front_busy, row.link_busy)
        shown = (str(row.replicas), f"{row.rate:.3g}", *(f"{seconds:.3g} s" for seconds in row.waited_s))
        shown += tuple(f"{share:.0%}" for share in busy)
        if price is not None:
            hourly = price * row.replica_hours
            shown += (f"{hourly:.4g}", f"{hourly / 3.6 / row.rate:.3g}" if row.rate else "")
        table.append(shown)
    show_table(console, titles, table, title=f"{names}; mean {mean_seconds(kinds):.3g} s", numbers=titles)
    console.print(
        f"one front has time for {limit:,.0f} replicas {'at this load' if load else 'that are busy all the time'}"
        if limit < float("inf")
        else "a front that takes no time has no limit"
    )
    if any(max(row.front_busy, row.link_busy) > 0.9 for row in rows):
        console.print(
            "beyond it jobs wait for the front: run several, each with its own replicas, behind a proxy or"
            " Client([...])"
        )
