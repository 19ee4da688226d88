"""``hybridge bench serve``: the load generator against a real server, and a run from the command line."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import shared_fork_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.client.address import Address
from hybridge.errors import EngineFailure, RequestError
from hybridge.lab.harness import record
from hybridge.lab.harness.stats import percentile
from hybridge.lab.serve_bench import load_generator, report, runner, servers
from hybridge.lab.serve_bench.cases import Kind, Load, ServeArguments, loads_of
from hybridge.lab.serve_bench.load_generator import Bounds, PreparedRequest, Sample
from hybridge.server.process.server import running

ARGUMENTS = ServeArguments(
    url=None,
    loads=(Load((Kind("starter", 64),)),),
    clients=2,
    rate=None,
    in_flight=4,
    seconds=None,
    requests=6,
    rivals=("hybridge",),
    picture_format="png",
    repeats=1,
    limit_s=60.0,
)


class Counting:
    """Answers as a server would, keeps whoever asks for it waiting, and counts."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.connections: set[tuple[str, int]] = set()
        routes = [Route(f"/{name}", self.answer, methods=["POST"]) for name in ("good", "busy", "page", "stuck")]
        self.app = Starlette(routes=routes)

    async def answer(self, request: Request) -> Response:
        name = request.url.path.strip("/")
        self.seen[name] += 1
        assert request.client is not None
        self.connections.add(request.client)
        if name == "stuck":
            await request.body()
            while (await request.receive())["type"] != "http.disconnect":
                continue
        if name == "busy":
            return JSONResponse({"error": "full", "code": "Overloaded"}, 429)
        if name == "page":
            return Response("a page", media_type="text/html")
        return Response(
            b"picture", media_type="image/png", headers={"server-timing": "queue;dur=1, device;dur=2.5"}
        )


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def address(counting: Counting) -> Iterator[str]:
    with running(counting.app) as address:
        yield address


def request(address: str, name: str) -> PreparedRequest:
    return PreparedRequest(name, f"{address}/{name}", {}, b"body")


def test_a_closed_loop_sends_what_it_was_asked_to_over_one_connection_for_each_client(
    counting: Counting, address: str
) -> None:
    samples = load_generator.closed([request(address, "good")] * 3, Bounds(None, 20))
    assert counting.seen == {"good": 20} == Counter(sample.kind for sample in samples)
    assert 1 <= len(counting.connections) <= 3  # a client may begin when the others have sent all
    assert {sample.outcome for sample in samples} == {load_generator.OK}
    assert samples[0].stages_ms == {"queue": 1.0, "device": 2.5}
    assert all(sample.wall_s is not None and sample.wall_s > 0 for sample in samples)


def test_a_closed_loop_ends_in_time(counting: Counting, address: str) -> None:
    samples = load_generator.closed([request(address, "good")], Bounds(0.2, None))
    assert len(samples) == counting.seen["good"] > 1
    assert samples[-1].at_s < 0.2


def test_errors_are_counted_by_kind(address: str) -> None:
    requests = [request(address, name) for name in ("busy", "page", "nowhere")]
    requests.append(PreparedRequest("gone", "http://127.0.0.1:9/", {}, b""))
    samples = load_generator.closed(requests, Bounds(None, 4))
    assert Counter(sample.outcome for sample in samples) == {
        "429 Overloaded": 1,
        "200 text/html": 1,
        "404 text/plain": 1,
        "ConnectionRefusedError": 1,
    }


def test_an_open_loop_is_bounded_and_counts_from_when_a_request_was_due(counting: Counting, address: str) -> None:
    due = [(0.0, request(address, "stuck")), (0.01, request(address, "stuck")), (0.02, request(address, "good"))]
    samples = load_generator.open_loop(due, 2, Bounds(5.0, None, limit_s=0.3))
    outcomes = {sample.kind: sample for sample in samples}
    assert outcomes["stuck"].outcome == "TimeoutError"
    late = outcomes["good"]
    # It was due while two were stuck, and sent when the first of them had timed out.
    assert late.outcome == load_generator.OK
    assert late.at_s == pytest.approx(0.02)
    assert late.wall_s is not None
    assert late.wall_s > 0.25


def test_what_could_not_be_sent_in_time_is_not_sent(counting: Counting, address: str) -> None:
    due = [(0.0, request(address, "stuck")), (0.01, request(address, "good"))]
    samples = load_generator.open_loop(due, 1, Bounds(0.1, None, limit_s=0.4))
    assert sorted((sample.kind, sample.outcome) for sample in samples) == [
        ("good", load_generator.NOT_SENT),
        ("stuck", "TimeoutError"),
    ]
    assert counting.seen == {"stuck": 1}


def test_arrivals_are_drawn_by_weight_at_the_rate_and_always_the_same() -> None:
    requests = [request("http://x", "small"), request("http://x", "large")]
    arrivals, again = (
        list(load_generator.poisson(requests, [3, 1], 100.0, Bounds(100.0, None), seed=1)) for _ in range(2)
    )
    assert arrivals == again
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    assert sum(one.kind == "large" for _, one in arrivals) / len(arrivals) == pytest.approx(0.25, abs=0.02)
    assert arrivals[-1][0] < 100.0
    assert len(list(load_generator.poisson(requests, [1, 1], 100.0, Bounds(None, 7), seed=1))) == 7


@pytest.mark.parametrize(
    ("weights", "number", "dealt"),
    [([16, 1], 17, [16, 1]), ([1, 1], 3, [2, 1]), ([3, 1], 8, [6, 2]), ([100, 1], 2, [1, 1]), ([5], 4, [4])],
)
def test_clients_are_dealt_out_by_weight(weights: list[int], number: int, dealt: list[int]) -> None:
    assert load_generator.deal(weights, number) == dealt


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        ([7.0], 0.5, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 0.5, 2.0),
        ([float(n) for n in range(1, 21)], 0.95, 19.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 11)], 0.99, 10.0),
    ],
)
def test_percentiles_are_samples(samples: list[float], share: float, expected: float) -> None:
    assert percentile(samples, share) == expected


def test_mixes_are_read() -> None:
    (mixed,) = loads_of("starter", (256,), "256:16, taesd@512:2,64")
    assert mixed.kinds == (Kind("starter", 256, 16), Kind("taesd", 512, 2), Kind("starter", 64, 1))
    assert mixed.title == "starter 256² × 16, taesd 512² × 2, starter 64² × 1"
    assert replace(ARGUMENTS, clients=None, loads=(mixed,)).clients_of(mixed) == 19
    assert [one.title for one in loads_of("starter", (64, 128), None)] == ["starter 64²", "starter 128²"]


@pytest.mark.parametrize("mix", ["", "256:0", "256:x", "-8:1", "256:1,"])
def test_what_is_no_mix_is_refused(mix: str) -> None:
    with pytest.raises(RequestError, match="not a mix"):
        loads_of("starter", (256,), mix)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rivals": ("engin",)}, "unknown rival: saw engin"),
        ({"picture_format": "gif"}, "unknown format"),
        ({"requests": None}, "a load without an end"),
        ({"clients": 0}, "not a number of clients"),
        ({"clients": 10**6}, "not a number of clients"),
        ({"seconds": float("nan")}, "not a number of seconds"),
        ({"rate": 5.0}, "an open loop has no clients"),
        ({"rate": 1e4, "clients": None, "seconds": 100.0, "requests": None}, "too many requests"),
        ({"url": "http://x", "rivals": ("engine", "hybridge")}, "a server elsewhere has no rivals"),
        ({"loads": loads_of("starter", (), "64:1,128:1"), "clients": 1}, "fewer clients than kinds"),
        ({"loads": loads_of("starter", (60,), None)}, "not a size of this model's pictures"),
        ({"loads": loads_of("starter", (2**20,), None)}, "not a number of pixels"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_starts(
    changed: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        runner.run(replace(ARGUMENTS, **changed), tmp_path / "serve.json")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


class TestTables:
    """From samples whose numbers can be checked by hand."""

    @pytest.fixture
    def kept(self) -> record.Record:
        def sample(number: int, wall_s: float, outcome: str = load_generator.OK) -> dict[str, object]:
            stages = {"device": 80.0, "encode": 15.0} if outcome == load_generator.OK else {}
            return asdict(Sample("starter 64²", number * 0.1, wall_s, outcome, stages))

        alone = [
            asdict(Sample("starter 64²", n * 0.08, 0.08, load_generator.OK, {"device": 80.0})) for n in range(10)
        ]
        served = [*(sample(number, 0.1) for number in range(9)), sample(9, 0.1, "429 Overloaded")]
        key = {"load": "starter 64²", "round": 0}
        arguments = replace(ARGUMENTS, rivals=("engine", "hybridge", "ray"))
        environment = {"cpu": "a processor", "threads": 1, "cores": 2}
        environment |= dict.fromkeys(("torch", "diffusers", "litserve", "ray", "hybridge"))
        measurements = [
            {**key, "rival": "engine", "samples": alone},
            {**key, "rival": "hybridge", "samples": served},
            {**key, "rival": "ray", "missing": "ray is not installed"},
        ]
        return record.begin("serve", environment, asdict(arguments), measurements=measurements)

    def test_servers_stand_beside_each_other(self, kept: record.Record) -> None:
        servers, stages = report.tables(kept)
        alone, hybridge, ray = (dict(zip(servers.columns, row, strict=True)) for row in servers.rows)
        assert (alone["pictures/s"], alone["× engine"]) == ("12.50", "1.000")
        assert (hybridge["answers"], hybridge["pictures/s"], hybridge["× engine"]) == ("9", "10.00", "0.800")
        assert (hybridge["p50, ms"], hybridge["overhead p50, ms"]) == ("100.0", "5.0")
        assert hybridge["errors"] == "429 Overloaded × 1"
        assert ray["errors"] == "missing: ray is not installed"
        assert ("hybridge", "starter 64²", "encode", "15.0", "15.0", "15.0") in stages.rows

    def test_the_page_says_what_was_asked(self, kept: record.Record) -> None:
        page = report.markdown(kept)
        assert "closed loop, 6 requests, 1 rounds" in page
        assert "| Ray Serve, diffusers' decode | starter 64² | – |" in page

    def test_a_record_is_read_as_it_was_written(self, kept: record.Record, tmp_path: Path) -> None:
        path = tmp_path / "serve.json"
        record.write(kept, path)
        assert report.tables(record.read(path, "serve")) == report.tables(kept)
        with pytest.raises(RequestError, match="not a record that can be gone on with"):
            record.read(path, "vae")


def test_a_rival_that_is_not_installed_says_so() -> None:
    assert servers.Server("x", "X", package="no_such_package_anywhere").why_missing() == (
        "no_such_package_anywhere is not installed"
    )
    assert servers.SERVERS["hybridge"].why_missing() is None


def test_a_server_that_ends_before_it_answers_is_named_with_its_last_words() -> None:
    complains = [sys.executable, "-c", "raise SystemExit('no room here')"]
    server = replace(servers.SERVERS["hybridge"], command=lambda *_: complains)
    expected = r"hybridge did not answer: saw ended with status 1; no room here"
    with pytest.raises(EngineFailure, match=expected), servers.started(server, ARGUMENTS.loads[0], ARGUMENTS):
        pytest.fail("it cannot have started")


def test_requests_are_what_a_server_understands(server: str, small: str) -> None:
    kind = Kind(small.replace("mine=", "sd-v1="), 64)
    address = Address.parse(server)
    (sample,) = load_generator.closed([servers.request_to_hybridge(address, kind, ARGUMENTS)], Bounds(None, 1))
    assert sample.outcome == load_generator.OK
    assert {"device", "encode"} <= set(sample.stages_ms)


def test_a_run_from_the_command_line(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(runner, "ask", shared_fork_server.forking_ask(tmp_path))
    asked = ["bench", "serve", "--model", small, "--size", "64", "--clients", "2", "--requests", "6"]
    asked += ["--repeats", "1", "--rivals", "engine,hybridge,ray", "--limit-s", "120", "--out", str(tmp_path)]
    monkeypatch.setitem(servers.SERVERS, "ray", replace(servers.SERVERS["ray"], package="no_ray_here"))
    shown = CliRunner().invoke(application, asked, env={"COLUMNS": "250"}, catch_exceptions=False)
    shared_fork_server.close_all()
    kept = json.loads((tmp_path / "serve-mine.json").read_text())
    engine, hybridge, ray = kept["measurements"]
    assert [sample["outcome"] for sample in engine["samples"] + hybridge["samples"]] == [load_generator.OK] * 12
    assert ray["missing"] == "no_ray_here is not installed"
    assert {"cpu", "threads", "litserve", "ray"} <= set(kept["environment"])
    assert "| hybridge | mine 64² | 6 |" in (tmp_path / "serve-mine.md").read_text()
    assert "missing: no_ray_here is not installed" in shown.stdout
    with pytest.raises(RequestError, match=r"there is a record already.*--resume"):
        CliRunner().invoke(application, asked, catch_exceptions=False)
