"""What it costs to be seen: the same fleet with nothing told of its predictions, with what is always told, with
metrics, and with traces, side by side. `make bench-telemetry`.

It must not know how anything is told: what a collector gets is counted, and no more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console
from rich.table import Table

from cog_celery.errors import CogCeleryError
from cog_celery.local.embedded import EmbeddedServer

from . import BenchError
from .contestants import environment
from .fleet import Command, Fleet
from .phases import ONE_SLOT, throughput, warm_up
from .wire import Wire

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0
"""µs of CPU for each no-op prediction that all of it together may cost."""
SCRAPED = 5.0
"""Seconds between scrapes: twice as often as in deploy/monitoring."""
SENT = 1.0
"""Seconds after which spans are sent, though they are no full message: in time to be measured, not in five."""
MESSAGE = "redis_queue.process_message"
WIDTH = 120


@dataclass(frozen=True)
class Told:
    """What one fleet tells."""

    name: str
    module: str = "cog_celery"
    metrics: bool = False
    traces: bool = False


FIELD = (
    Told("nothing", "bench.mute"),
    Told("as by default: rows, log lines, notes"),
    Told("… and metrics", metrics=True),
    Told("… and metrics and traces", metrics=True, traces=True),
)


class Sink:
    """A collector that counts the predictions whose spans it gets."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None: ...

            def do_POST(self) -> None:
                sink._bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response_only(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def count(self) -> int:
        """Since the last time."""
        bodies, self._bodies = self._bodies, []
        requests = map(ExportTraceServiceRequest.FromString, bodies)
        scopes = [
            scope for request in requests for resource in request.resource_spans for scope in resource.scope_spans
        ]
        return sum(span.name == MESSAGE for scope in scopes for span in scope.spans)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def scraped(ports: Sequence[int]) -> Iterator[None]:
    """Ask these ports for their metrics, again and again."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(SCRAPED):
            for port in ports:
                with contextlib.suppress(OSError):  # not there yet, or not any more
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def fleet(told: Told, queue: str, server: str, sink: str, ports: Sequence[int]) -> Fleet:
    env = environment()
    if told.traces:
        env |= {"OTEL_SERVICE_NAME": "bench", "OTEL_BSP_SCHEDULE_DELAY": f"{1000 * SENT:.0f}"}
        env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": sink, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    program = (sys.executable, "-m", told.module)
    common = ("--queue", queue, "--redis-url", server)
    arguments = [("bridge", *common), ("worker", str(ONE_SLOT.model), *common, "--slots", str(ONE_SLOT.slots))]
    if told.metrics:
        arguments = [(*one, "--metrics-port", str(port)) for one, port in zip(arguments, ports, strict=True)]
    return Fleet([Command((*program, *one), ROOT, env) for one in arguments])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """µs of CPU for each prediction, by who is measured and round. All fleets are there at the same time, and have
    their turns one after the other. Raises BenchError.
    """
    found: dict[str, list[float]] = {told.name: [] for told in FIELD}
    ports = {told: (free_port(), free_port()) for told in FIELD if told.metrics}
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer())
        wire = stack.enter_context(Wire(server.url))
        sink = stack.enter_context(contextlib.closing(Sink()))
        fleets: list[tuple[Told, str, Fleet]] = []
        for number, told in enumerate(FIELD):
            queue = f"bench-{number}"
            wire.call("XGROUP", "CREATE", queue, queue, "0", "MKSTREAM")
            one = stack.enter_context(fleet(told, queue, server.url, sink.url, ports.get(told, ())))
            one.wait_ready(wire, queue, ONE_SLOT.slots)
            fleets.append((told, queue, one))
        stack.enter_context(scraped([*itertools.chain(*ports.values())]))
        rate = min(warm_up(wire, one, queue) for _, queue, one in fleets)
        count = max(1000, round(rate * seconds))
        for number in range(rounds):
            first = number % len(fleets)
            for told, queue, one in [*fleets[first:], *fleets[:first]]:
                sink.count()
                per_second, milliseconds = throughput(wire, one, queue, count, SENT + 0.3)
                if told.traces and (arrived := _arrived(sink, count)) != count:
                    raise BenchError(f"the collector got {arrived} of {count} predictions{one.tail()}")
                found[told.name].append(1000 * milliseconds)
                click.echo(
                    f"round {number + 1} of {rounds} · {told.name}: {1000 * milliseconds:.0f} µs, {per_second:.0f} /s",
                    err=True,
                )
    return found


def _arrived(sink: Sink, count: int) -> int:
    deadline = time.monotonic() + 5
    arrived = sink.count()
    while arrived < count and time.monotonic() < deadline:
        time.sleep(0.05)
        arrived += sink.count()
    return arrived


def costs(found: dict[str, list[float]]) -> dict[str, float]:
    """µs above nothing."""
    nothing = undisturbed(found[FIELD[0].name])
    return {name: undisturbed(values) - nothing for name, values in found.items()}


def undisturbed(values: Sequence[float]) -> float:
    """The mean of the lowest quarter: what else the machine does can only add to the CPU time of a prediction."""
    return statistics.fmean(sorted(values)[: max(1, len(values) // 4)])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 100), default=12, show_default=True)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="What a round takes for each fleet.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
@click.option("--check", is_flag=True, help=f"Exit with status 1 when all together cost more than {LIMIT:g} µs.")
def main(rounds: int, seconds: float, output: str, check: bool) -> None:
    """Measure what rows, log lines, metrics and traces cost a no-op prediction, in CPU time of its processes."""
    try:
        found = measure(rounds, seconds)
    except (BenchError, CogCeleryError) as error:
        raise click.ClickException(str(error)) from None
    above = costs(found)
    most = above[FIELD[-1].name]
    if output == "json":
        click.echo(json.dumps({"microseconds": found, "above_nothing": above, "limit": LIMIT}, indent=2))
    else:
        table = Table(title=f"CPU per no-op prediction, the best quarter of {rounds} rounds")
        for heading in ("what is told", "CPU", "above nothing"):
            table.add_column(heading, justify="right" if heading != "what is told" else "left")
        for name, values in found.items():
            table.add_row(name, f"{undisturbed(values):.0f} µs", f"{above[name]:.0f} µs")
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(table)
        console.print(f"at most {LIMIT:g} µs: {'met' if most <= LIMIT else 'missed'}", highlight=False)
    if check and most > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m bench.telemetry")
