"""What can be seen from outside: log lines, metrics, traces, and the dashboard that is drawn from them."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from hybridge.engine import Engine, EngineOptions
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.request_record import RequestRecord
from hybridge.server.process.logs import JsonFormatter
from hybridge.server.process.server import running
from hybridge.server.process.traces import Traces

ROOT = Path(__file__).parents[3]
QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}
BODY = bytes(1024)
BINARY = {"content-type": "tensor/binary"}


@pytest.fixture(scope="module")
def records() -> list[RequestRecord]:
    return []


@pytest.fixture(scope="module")
def server(engines, records) -> Iterator[str]:
    backend = LocalBackend({name: engines[name] for name in ("sd-v1", "flux")}, memory_bytes=2**40)
    with running(create_app(backend, observers=[records.append])) as address:
        yield address


def decode(server: str, **headers: str) -> httpx.Response:
    url = f"{server}/v1/sd-v1/decode"
    return httpx.post(url, params=QUERY, content=BODY, headers={**BINARY, **headers})


def samples(server: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(f"{server}/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestLog:
    def test_one_line_when_a_request_ends(self, server, caplog, records) -> None:
        caplog.set_level(logging.INFO, "hybridge.access")
        response = decode(server, **{"x-request-id": "mine-1"})
        assert httpx.get(f"{server}/health").status_code == 200  # the line of the request before is written by now
        lines = [record for record in caplog.records if record.name == "hybridge.access"]
        (line,) = [record for record in lines if record.fields["request_id"] == "mine-1"]
        assert line.getMessage().startswith("200 sd-v1 decode for address:127.0.0.1: read ")
        entry = json.loads(JsonFormatter().format(line))
        assert (entry["model"], entry["task"], entry["status"]) == ("sd-v1", "decode", 200)
        assert (entry["request_id"], entry["client_id"]) == ("mine-1", "address:127.0.0.1")
        assert (entry["received_bytes"], entry["sent_bytes"]) == (1024, len(response.content))
        assert {"read", "queue", "load", "device", "encode", "total"} <= set(entry["milliseconds"])
        (mine,) = [record for record in records if record.request_id == "mine-1"]
        assert mine.milliseconds["total"] >= mine.milliseconds["device"]

    def test_nothing_of_what_was_sent(self, server, caplog) -> None:
        caplog.set_level(logging.DEBUG)
        secret = "s3cr3t"  # noqa: S105 - to be looked for
        url = f"{server}/v1/sd-v1/decode?{secret}={secret}&key={secret}"
        headers = {"authorization": f"Bearer {secret}", "x-request-id": f"{secret}!", "user-agent": secret}
        for path in (url, f"{server}/{secret}", f"{server}/v1/{secret}/decode"):
            httpx.post(path, content=f'{{"inputs": "{secret}"}}', headers={**headers, "referer": secret})
        mine = [record for record in caplog.records if record.name.startswith(("hybridge", "uvicorn"))]
        assert len(mine) >= 3
        assert secret not in "\n".join(JsonFormatter().format(record) for record in mine)

    def test_a_traceback_stays_on_one_line(self) -> None:
        try:
            raise KeyError("a\nb")
        except KeyError as error:
            record = logging.LogRecord("x", 40, "", 0, "it\nfailed", (), (type(error), error, error.__traceback__))
        line = JsonFormatter().format(record)
        assert "\n" not in line
        assert "KeyError" in json.loads(line)["traceback"]


class TestRequestId:
    def test_given_or_made(self, server) -> None:
        assert decode(server, **{"x-request-id": "a.B-9_"}).headers["x-request-id"] == "a.B-9_"
        made = {httpx.get(f"{server}/nothing").headers["x-request-id"] for _ in range(2)}
        assert len(made) == 2

    @pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", 'a"b', "a,b"])
    def test_an_odd_one_is_replaced(self, server, given) -> None:
        found = httpx.get(f"{server}/health", headers={"x-request-id": given}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", found)


class TestMetrics:
    def test_each_request_counts_once(self, server) -> None:
        def counted(status: str) -> float:
            labels = (("model", "sd-v1"), ("status", status), ("task", "decode"))
            return samples(server).get(("hybridge_requests_total", labels), 0.0)

        before, refused = counted("200"), counted("400")
        stage = ("hybridge_stage_seconds_count", (("model", "sd-v1"), ("stage", "device")))
        timed = samples(server).get(stage, 0.0)
        decode(server)
        decode(server)
        httpx.post(f"{server}/v1/sd-v1/decode", params={"shape": "x"}, content=b"")
        assert counted("200") == before + 2
        assert counted("400") == refused + 1
        assert samples(server)[stage] == timed + 2

    def test_the_names_that_were_asked_for(self, server) -> None:
        found = {name for name, _ in samples(server)}
        assert {"inf_batch_current_size", "inf_queue_size", "hybridge_queue_depth", "hybridge_queue_cost"} <= found
        assert {"hybridge_model_loads_total", "hybridge_weights_bytes", "hybridge_ready"} <= found
        assert {"process_resident_memory_bytes", "process_open_fds"} <= found
        assert samples(server)["hybridge_ready", ()] == 1

    def test_two_applications_do_not_share_them(self, server, engines) -> None:
        decode(server)
        with running(create_app(LocalBackend({"sd-v1": engines["sd-v1"]}))) as other:
            labels = (("model", "sd-v1"), ("status", "200"), ("task", "decode"))
            assert ("hybridge_requests_total", labels) not in samples(other)

    def test_work_that_is_done_later_counts_when_it_is_done(self, server) -> None:
        device = ("hybridge_stage_seconds_count", (("model", "sd-v1"), ("stage", "device")))
        total = ("hybridge_stage_seconds_count", (("model", "sd-v1"), ("stage", "total")))
        runs = ("hybridge_run_jobs_count", (("model", "sd-v1"),))
        decode(server)
        before = samples(server)
        accepted = decode(server, prefer="respond-async")
        assert accepted.status_code == 202
        httpx.get(f"{server}{accepted.headers['location']}/events", timeout=60)  # until it is over
        after = samples(server)
        assert [after[name] - before[name] for name in (device, runs, total)] == [1, 1, 0]
        done = ("hybridge_jobs_total", (("model", "sd-v1"), ("status", "200"), ("task", "decode")))
        assert after[done] - before.get(done, 0) == 1
        labels = (("model", "sd-v1"), ("status", "202"), ("task", "decode"))
        assert after["hybridge_requests_total", labels] == 1

    def test_a_job_that_fails_is_told_of_once_like_a_request(self, server, caplog) -> None:
        caplog.set_level(logging.INFO)

        def failures() -> float:
            labels = (("model", "sd-v1"), ("status", "400"), ("task", "decode"))
            return samples(server).get(("hybridge_jobs_total", labels), 0.0)

        before = failures()
        headers = {**BINARY, "prefer": "respond-async", "x-request-id": "later-1"}
        broken = b"\x00\x00\xc0\x7f" * 256
        accepted = httpx.post(f"{server}/v1/sd-v1/decode", params=QUERY, content=broken, headers=headers)
        job = f"{server}{accepted.headers['location']}"
        assert '"state": "failed"' in httpx.get(f"{job}/events", timeout=60).text
        assert failures() == before + 1
        assert httpx.delete(job).status_code == 204  # which is no second end
        assert failures() == before + 1
        (line,) = [record for record in caplog.records if record.name == "hybridge.jobs"]
        entry = json.loads(JsonFormatter().format(line))
        assert (entry["model"], entry["task"], entry["status"]) == ("sd-v1", "decode", 400)
        assert (entry["request_id"], entry["client_id"]) == ("later-1", "address:127.0.0.1")
        assert line.getMessage() == "400 sd-v1 decode for address:127.0.0.1, done later [later-1]"
        assert any(record.getMessage().startswith("refused: ") for record in caplog.records)

    def test_models_that_come_and_go(self, specs) -> None:
        cold = [specs["sd-v1"], specs["sdxl"]]
        options = EngineOptions(device="cpu", exactness="bitwise")
        weights_bytes = Engine.load(cold[0], options).weights_bytes
        # A run takes two and a half times the weights: room for it beside one model, not beside both.
        backend = LocalBackend({}, cold=cold, options=options, memory_bytes=4 * weights_bytes)
        with running(create_app(backend)) as address:
            assert samples(address)["hybridge_weights_bytes", ()] == 0
            for spec in cold:
                answer = httpx.post(
                    f"{address}/v1/{spec.name}/decode", params=QUERY, content=BODY, headers=BINARY, timeout=60
                )
                assert answer.status_code == 200, answer.text
            found = samples(address)
        assert found["hybridge_weights_bytes", ()] == weights_bytes
        for name, evictions in (("sd-v1", 1), ("sdxl", 0)):
            assert found["hybridge_model_loads_total", (("model", name),)] == 1
            assert found["hybridge_model_evictions_total", (("model", name),)] == evictions


def names_in(expression: str) -> set[str]:
    """Metric names in a PromQL expression: words that are neither functions, labels nor keywords."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by\s*\([^)]*\)", "", expression)
    return set(re.findall(r"\b((?:hybridge|inf|process)_[a-z_]+)\b", bare))


def test_the_dashboard_asks_for_what_the_server_has(server) -> None:
    decode(server)
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    text = httpx.get(f"{server}/metrics").text
    # A counter without labels' values yet has a family but no sample; its samples end in _total all the same.
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    known = set(families) | {name for name, _ in samples(server)}
    known |= {f"{name}_total" for name, kind in families.items() if kind == "counter"}
    asked = set().union(*map(names_in, expressions))
    assert len(expressions) >= 8
    assert all(names_in(expression) for expression in expressions)
    assert asked <= known, asked - known
    # And the other way round: whatever is counted is drawn.
    parts = {"_total", "_sum", "_count", "_bucket"}
    drawn = {name.removesuffix(next((part for part in parts if name.endswith(part)), "")) for name in asked}
    own = {name for name in families if name.startswith(("hybridge_", "inf_")) and not name.endswith("_created")}
    assert {name.removesuffix("_total") for name in own} <= drawn, own - drawn


def test_the_operators_page_names_every_metric(server) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    families = {family.name for family in text_string_to_metric_families(httpx.get(f"{server}/metrics").text)}
    own = {name for name in families if not name.startswith("process_") and not name.endswith("_created")}
    listed = set(re.findall(r"^\| `((?:hybridge|inf)_\w+)`", page, re.MULTILINE))
    assert {name.removesuffix("_total") for name in listed} == {name.removesuffix("_total") for name in own}


class Collector(ThreadingHTTPServer):
    """A collector on loopback that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[object] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest()
                sent.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                collector.spans += [
                    span for one in sent.resource_spans for scope in one.scope_spans for span in scope.spans
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


def test_traces(engines) -> None:
    with Collector() as collector:
        serving = threading.Thread(target=collector.serve_forever)
        serving.start()
        traces = Traces(f"http://127.0.0.1:{collector.server_address[1]}/v1/traces")
        app = create_app(LocalBackend({"sd-v1": engines["sd-v1"]}), observers=[traces.observe])
        trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        with running(app) as address:
            decode(address, traceparent=f"00-{trace_id}-{parent}-01")
        traces.close()
        collector.shutdown()
        serving.join()
    (request,) = [span for span in collector.spans if span.name == "decode"]
    assert request.trace_id.hex() == trace_id
    assert request.parent_span_id.hex() == parent
    attributes = {one.key: one.value for one in request.attributes}
    assert attributes["hybridge.model"].string_value == "sd-v1"
    assert attributes["http.response.status_code"].int_value == 200
    stages = {span.name for span in collector.spans if span.parent_span_id == request.span_id}
    assert stages == {"read", "queue", "load", "device", "encode"}


def test_opentelemetry_is_not_loaded_unless_asked_for() -> None:
    import subprocess
    import sys

    code = "import sys, hybridge.server.app; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
