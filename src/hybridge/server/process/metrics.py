"""Metrics for Prometheus: a request counts once, when it ends; gauges are read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..middleware.request_record import RequestRecord
from ..scheduling.backend import Backend, BackendLoad

#: Buckets in seconds, from a tiny picture on a GPU to a large one on a CPU.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

_BATCHES = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All metrics of one application, in a registry of its own.

    Args:
        backend: The backend, whose load is shown.
        inflight_bytes: Returns the bytes of bodies that are being received.
    """

    def __init__(self, backend: Backend, inflight_bytes: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hybridge_requests",
            "Requests that have ended; status 499 is a client that hung up",
            ["model", "task", "status"],
            registry=self._registry,
        )
        self._jobs = Counter(
            "hybridge_jobs",
            "Jobs that were accepted for later and have ended; status is their result's, 499 for a cancelled one",
            ["model", "task", "status"],
            registry=self._registry,
        )
        self._stages = Histogram(
            "hybridge_stage_seconds",
            "Time that work which was done spent in each stage",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._pictures = Histogram(
            "hybridge_request_pictures",
            "Pictures, or prompts, in one request",
            ["model"],
            buckets=_BATCHES,
            registry=self._registry,
        )
        self._shared = Histogram(
            "hybridge_run_jobs",
            "Jobs in the run on the device, for each job",
            ["model"],
            buckets=_BATCHES,
            registry=self._registry,
        )
        self._cache = Counter(
            "hybridge_prompt_cache",
            "Requests for text embeddings, by whether they were kept from before",
            ["model", "result"],
            registry=self._registry,
        )
        self._received = Counter("hybridge_received_bytes", "Bytes of bodies received", registry=self._registry)
        self._sent = Counter("hybridge_sent_bytes", "Bytes of bodies sent", registry=self._registry)
        self._registry.register(_Load(backend, inflight_bytes))
        ProcessCollector(registry=self._registry)

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.model, record.task, str(record.status)).inc()
        self._received.inc(record.received_bytes)
        self._sent.inc(record.sent_bytes)
        if record.task and record.status == HTTPStatus.OK:
            self._observe_work(record)

    def observe_job(self, record: RequestRecord) -> None:
        """Count an async job that has ended."""
        self._jobs.labels(record.model, record.task, str(record.status)).inc()
        if record.status == HTTPStatus.OK:
            self._observe_work(record)

    def _observe_work(self, record: RequestRecord) -> None:
        for stage, milliseconds in record.milliseconds.items():
            self._stages.labels(record.model, stage).observe(milliseconds / 1e3)
        self._pictures.labels(record.model).observe(record.pictures)
        self._shared.labels(record.model).observe(record.shared_by)
        if record.cache:
            self._cache.labels(record.model, record.cache).inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Load(Collector):
    """Gauges, read from their owner at each scrape."""

    def __init__(self, backend: Backend, inflight_bytes: Callable[[], int]) -> None:
        self._backend = backend
        self._inflight_bytes = inflight_bytes

    def collect(self) -> Iterable[Metric]:
        load: BackendLoad = self._backend.load()
        yield GaugeMetricFamily("hybridge_queue_depth", "Jobs that wait", load.waiting)
        yield GaugeMetricFamily("hybridge_queue_cost", "Seconds of work that wait", load.waiting_cost)
        yield GaugeMetricFamily("hybridge_running_jobs", "Jobs on the device", load.running)
        yield GaugeMetricFamily("hybridge_weights_bytes", "Bytes of loaded weights", load.weights_bytes)
        yield GaugeMetricFamily(
            "hybridge_host_weights_bytes", "Bytes of weights in the host's memory", load.host_bytes
        )
        if load.memory_bytes is not None:
            help_text = "Bytes that weights and runs may take together"
            yield GaugeMetricFamily("hybridge_memory_bytes", help_text, load.memory_bytes)
        yield GaugeMetricFamily("hybridge_inflight_bytes", "Bytes of bodies coming in", self._inflight_bytes())
        ready = float(self._backend.health() is None)
        yield GaugeMetricFamily("hybridge_ready", "1 while work is taken", ready)
        for name, help_text, counts in (
            ("hybridge_model_loads", "Times that a model was loaded from its files", load.loads),
            ("hybridge_model_restores", "Times that a model came back from the host's memory", load.restores),
            ("hybridge_model_evictions", "Times that a model left to make room", load.evictions),
        ):
            family = CounterMetricFamily(name, help_text, labels=["model"])
            for model, count in counts.items():
                family.add_metric([model], count)
            yield family
        yield from _of_each(load)
        # Under the names of Hugging Face's inference toolkit, for dashboards that were made for its containers.
        yield GaugeMetricFamily("inf_batch_current_size", "Jobs on the device", load.running)
        yield GaugeMetricFamily("inf_queue_size", "Jobs that wait", load.waiting)


def _of_each(load: BackendLoad) -> Iterable[Metric]:
    """Gauges of each replica, where there are some."""
    if not load.replicas:
        return
    working = sum(one.failure is None for one in load.replicas.values())
    yield GaugeMetricFamily("hybridge_replicas", "Replicas, or devices, that get jobs", working)
    for name, help_text, attribute in (
        ("hybridge_replica_queue_depth", "Jobs that wait in a replica", "waiting"),
        ("hybridge_replica_running_jobs", "Jobs on the device of a replica", "running"),
        ("hybridge_replica_weights_bytes", "Bytes of loaded weights in a replica", "weights_bytes"),
    ):
        family = GaugeMetricFamily(name, help_text, labels=["replica"])
        for replica, one in load.replicas.items():
            family.add_metric([replica], getattr(one, attribute))
        yield family
