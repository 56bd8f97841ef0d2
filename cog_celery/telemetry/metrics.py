"""What Prometheus scrapes: a worker's counters and times, and what a bridge knows of its queues at that moment.

It must not know how anything is measured, and is imported with `--metrics-port` alone. No label comes from a request:
no id, no input, no URL; the model's own metrics are the one exception, which is bounded.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any, Final, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
import redis
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    Summary,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cog_celery import __version__
from cog_celery.delivery import servers
from cog_celery.delivery.finished import Finished
from cog_celery.delivery.presence import About, SlotState
from cog_celery.delivery.status import Look, QueueSeen
from cog_celery.errors import UsageError
from cog_celery.gpus.monitor import Monitor

BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""Seconds, from a millisecond to an hour."""
_BOUNDS: Final = [*map(floatToGoString, BUCKETS), "+Inf"]
REDIS_LIMIT: Final = 0.5
"""Seconds for each of the two replies of a scrape; without them it says that Redis is out of reach."""
CLIENT_LIMIT: Final = 10.0
"""Seconds that a scraper may be silent before its connection is closed."""
MOST_CLIENTS: Final = 16
"""Connections at a time; others are closed at once."""
MOST_MODEL_METRICS: Final = 50
"""Names of the model's own metrics that a worker shows; others are counted as left out."""
LARGEST_MODEL_METRICS: Final = 64 << 10
"""Bytes of JSON of one prediction's own metrics that are looked at."""

_TOTALS: Final = {
    "done": ("predictions", "Requests that a slot answered."),
    "dead": ("buried", "Requests that ended as dead letters, or could not be served."),
    "reclaimed": ("reclaims", "Requests taken over from an owner that was not heard of for a lease."),
    "released": ("releases", "Requests given back to be taken by others: drains, lost tickets."),
    "stale": ("stale_writes", "Writes of an owner that had lost its request to another, and that the fence kept out."),
    "settled": ("settled_commits", "Commits repeated after a lost reply."),
    "followed": ("followed", "Requests answered with another one of the same id."),
    "setup_failed": ("setup_failures", "Workers whose model could not be set up."),
}
"""The fields of the counts that a queue keeps in Redis, and what they are called here."""
_NAME: Final = re.compile(r"[^a-zA-Z0-9_]+")

log = logging.getLogger(__name__)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each of ours, that nobody asks for


class Times:
    """A histogram of seconds, filled by one thread at a time; the library's takes four times as long for a value."""

    def __init__(self, name: str, help: str, queue: str) -> None:
        self._name, self._help, self._queue = f"cog_celery_{name}_seconds", help, queue
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def family(self) -> Metric:
        """As it is now."""
        family = HistogramMetricFamily(self._name, self._help, labels=["queue"])
        totals = accumulate(list(self._counts))
        family.add_metric([self._queue], list(zip(_BOUNDS, totals, strict=True)), self._sum)
        return family


class WorkerMetrics:
    """One worker's. finished() is called by one thread, restarted() from any slot's."""

    def __init__(self, queue: str, about: Callable[[], About], reached: Callable[[], bool], monitor: Monitor) -> None:
        self.registry = _registry()
        self._queue = queue
        self._about = about
        self._reached = reached
        self._monitor = monitor
        self._lock = threading.Lock()
        self._ended = self._counter("predictions", "Deliveries that are over.", "outcome", "fault")
        self._outcomes: dict[tuple[str, str | None], Any] = {}
        self._waited = Times("time_in_queue", "From XADD to a slot, by the clocks of both.", queue)
        self._predicted = Times("predict", "predict(), by the runner's clock.", queue)
        self._uploaded = Times("upload", "From the start of the first output file to the end of the last.", queue)
        self._fetched = Times("fetch", "Input files on their way in.", queue)
        self._overhead = Times("overhead", "What is neither predict() nor files.", queue)
        self._setup = Times("setup", "setup(), with the start of its process.", queue)
        self._bytes_in = self._bytes_out = 0
        self._restarts = self._counter("runner_restarts", "Runners set up again after they died.").labels(queue)
        self._setup_failures = self._counter("setup_failures", "setup() of a slot's runner that failed.", "runner")
        self._own = Summary(
            "cog_celery_model_metric", "The model's own metrics.", ["queue", "name"], registry=self.registry
        )
        self._own_by_name: dict[str, Any] = {}
        self._left_out = self._counter(
            "model_metrics_left_out", "The model's own metrics that are no numbers, or too many."
        ).labels(queue)
        self.registry.register(_Scraped(self._now))

    def finished(self, finished: Finished) -> None:
        """A delivery is over."""
        key = finished.outcome, finished.fault
        counter = self._outcomes.get(key)
        if counter is None:
            counter = self._outcomes[key] = self._ended.labels(self._queue, finished.outcome, finished.fault or "")
        counter.inc()
        self._bytes_in += finished.bytes_in
        if not finished.answered:
            return
        self._bytes_out += finished.bytes_out
        self._waited.observe(finished.time_in_queue)
        self._overhead.observe(finished.overhead)
        if finished.predict_time is not None:
            self._predicted.observe(finished.predict_time)
        if (took := finished.upload_time) is not None:
            self._uploaded.observe(took)
        if (took := finished.fetch_time) is not None:
            self._fetched.observe(took)
        if finished.metrics:
            self._observe_own(bytes(finished.metrics))

    def set_up(self, seconds: float) -> None:
        """A model was set up."""
        with self._lock:
            self._setup.observe(seconds)

    def setup_failed(self, runner: str) -> None:
        """The runner of this name could not be set up."""
        self._setup_failures.labels(self._queue, runner).inc()

    def restarted(self, seconds: float) -> None:
        """A runner that had died was set up again."""
        self._restarts.inc()
        self.set_up(seconds)

    def _observe_own(self, metrics: bytes) -> None:
        """As far as there is room; names become words of a metric's name."""
        try:
            values = msgspec.json.decode(metrics, type=dict[str, Any]) if len(metrics) <= LARGEST_MODEL_METRICS else {}
        except (ValueError, RecursionError):
            values = {}
        left_out = 0 if values else 1
        for name, value in values.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                left_out += 1
                continue
            name = _NAME.sub("_", name)[:64]
            summary = self._own_by_name.get(name)
            if summary is None:
                with self._lock:
                    if len(self._own_by_name) >= MOST_MODEL_METRICS and name not in self._own_by_name:
                        left_out += 1
                        continue
                    summary = self._own_by_name[name] = self._own.labels(self._queue, name)
            summary.observe(float(value))
        if left_out:
            self._left_out.inc(left_out)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"cog_celery_{name}", help, ["queue", *labels], registry=self.registry)

    def _now(self) -> Iterator[Metric]:
        """What is asked for at each scrape."""
        about, queue = self._about(), self._queue
        times = (self._waited, self._predicted, self._uploaded, self._fetched, self._overhead, self._setup)
        yield from (one.family() for one in times)
        for name, help, size in (
            ("received_bytes", "Requests and input files.", self._bytes_in),
            ("sent_bytes", "Terminal responses and output files.", self._bytes_out),
        ):
            counter = CounterMetricFamily(f"cog_celery_{name}", help, labels=["queue"])
            counter.add_metric([queue], size)
            yield counter
        info = ["role", "version", "queue", "model", "model_version"]
        family = GaugeMetricFamily("cog_celery_info", "What this process is; always 1.", labels=info)
        family.add_metric(["worker", __version__, queue, about.model, about.model_version], 1)
        yield family
        family = GaugeMetricFamily("cog_celery_slots", "Slots of this worker by state.", labels=["queue", "state"])
        for state in get_args(SlotState):
            family.add_metric([queue, state], sum(slot.state == state for slot in about.slots))
        yield family
        ready = GaugeMetricFamily("cog_celery_worker_ready", "Whether this worker takes requests.", labels=["queue"])
        ready.add_metric([queue], about.state == "ready")
        yield ready
        yield _up(self._reached())
        yield from _gpus(self._monitor)


class BridgeMetrics:
    """What Redis says of some queues, asked at each scrape; the rest of this process, Redis or not."""

    def __init__(self, redis_url: str, queues: Sequence[str]) -> None:
        self.registry = _registry()
        self._queues = queues
        # Answers of a server that was out of reach are of no use a moment later: nothing is tried again.
        self._client = servers.client(
            redis_url,
            socket_timeout=REDIS_LIMIT,
            socket_connect_timeout=REDIS_LIMIT,
            client_name="cog-celery-metrics",
        )
        self._look = Look(self._client)
        self._lock = threading.Lock()
        self.registry.register(_Scraped(self._now))

    def _now(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("cog_celery_info", "What this process is; always 1.", labels=["role", "version"])
        info.add_metric(["bridge", __version__], 1)
        yield info
        try:
            with self._lock:
                seen = self._look.queues(self._queues, notes=False)
        except redis.RedisError as error:
            log.debug("a scrape went without Redis: %s", error)
            yield _up(False)
            return
        yield _up(True)
        yield from _queues(seen)


def _queues(seen: Sequence[QueueSeen]) -> Iterator[Metric]:
    figures: list[tuple[str, str, Callable[[QueueSeen], float | None]]] = [
        ("depth", "Requests that wait or run.", lambda queue: queue.length),
        ("waiting", "Requests that are in no slot.", lambda queue: queue.waiting),
        ("oldest_waiting_seconds", "The age of the oldest of these, 0 without.", _oldest),
        ("in_flight", "Requests that are in a slot.", lambda queue: queue.running),
        ("dead_letters", "Dead letters that are kept.", lambda queue: queue.dead),
        ("bridges", "Bridges that live.", lambda queue: sum(bridge.alive for bridge in queue.bridges)),
        ("workers", "Workers that live.", lambda queue: sum(worker.alive for worker in queue.workers)),
    ]
    for name, help, figure in figures:
        family = GaugeMetricFamily(f"cog_celery_queue_{name}", help, labels=["queue"])
        for queue in seen:
            if (value := figure(queue)) is not None:
                family.add_metric([queue.name], value)
        yield family
    slots = GaugeMetricFamily(
        "cog_celery_queue_slots", "Slots of all workers that live, by state.", labels=["queue", "state"]
    )
    for queue in seen:
        for state in get_args(SlotState):
            slots.add_metric([queue.name, state], queue.slots()[state])
    yield slots
    for field, (name, help) in _TOTALS.items():
        counter = CounterMetricFamily(f"cog_celery_queue_{name}", help, labels=["queue"])
        for queue in seen:
            counter.add_metric([queue.name], queue.total.get(field, 0))
        yield counter


def _oldest(queue: QueueSeen) -> float | None:
    return queue.oldest if queue.oldest is not None else None if queue.problems else 0.0


def _gpus(monitor: Monitor) -> Iterator[Metric]:
    by = ["gpu", "uuid"]
    used = GaugeMetricFamily("cog_celery_gpu_memory_used_bytes", "Memory in use, by anybody.", labels=by)
    total = GaugeMetricFamily("cog_celery_gpu_memory_bytes", "Memory that there is.", labels=by)
    busy = GaugeMetricFamily("cog_celery_gpu_utilization_ratio", "Share of time in which it worked.", labels=by)
    for gpu in monitor.read():
        which = [gpu.label, gpu.uuid]
        used.add_metric(which, gpu.used)
        total.add_metric(which, gpu.total)
        if gpu.utilization is not None:
            busy.add_metric(which, gpu.utilization)
    yield from (used, total, busy)
    well = GaugeMetricFamily("cog_celery_gpu_well", "Whether a GPU of this worker's slots can be used.", labels=by)
    for label, uuid, trouble in monitor.states():
        well.add_metric([label, uuid], trouble is None)
    yield well


def _up(up: bool) -> Metric:
    family = GaugeMetricFamily("cog_celery_redis_up", "Whether Redis answers this process.")
    family.add_metric([], up)
    return family


class _Scraped(Collector):
    """What is asked for at each scrape, and not when it is registered."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        return []


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


# -- the server


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each scraper, and no more than some of them."""

    daemon_threads = True
    request_queue_size = 64
    block_on_close = False

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_bind(self) -> None:
        super().server_bind()
        self.server_name = "cog-celery"  # else a name server is asked for it

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scraper's connection broke", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_LIMIT

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("a scraper: " + format, *args)


class MetricsServer:
    """Answers GET /metrics on all addresses of this host, until it is closed."""

    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        """Raises UsageError when the port cannot be had."""
        try:
            self._server = make_server("", port, make_wsgi_app(registry), _Server, _Handler)
        except OSError as error:
            raise UsageError(
                f"--metrics-port {port}: {(error.strerror or str(error)).lower()}; each process on a host needs a "
                "port of its own"
            ) from None
        self.port: int = self._server.server_port
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics are served on port %d", self.port)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):  # wakes the thread: the server's own way is to look twice a second
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._server.server_close()

    def _serve(self) -> None:
        while not self._closed:
            self._server.handle_request()
