"""An OpenTelemetry collector for tests: OTLP over HTTP and over gRPC, on free ports; and the trees of what it got.

It must not know what the spans are about.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from tests.support.processes import wait_until

UNPACK: dict[str | None, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@dataclass(frozen=True)
class Seen:
    """A span as it came. Times are in nanoseconds since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    status: tuple[str, str]
    scope: str
    resource: dict[str, Any]
    event_times: list[int]

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / 1e9

    @property
    def event_names(self) -> list[str]:
        return [name for name, _ in self.events]


@dataclass
class Node:
    """A span and those below it, by their starts."""

    span: Seen
    children: list[Node] = field(default_factory=list)

    def shape(self) -> Any:
        """Names alone: `name`, or `(name, [children])`."""
        if not self.children:
            return self.span.name
        return self.span.name, [child.shape() for child in self.children]


class Collector:
    """What came, whichever way; `reply` is called with each HTTP request's number, and answers a status."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.bodies: list[bytes] = []
        """Every message, as it was sent but for its compression."""
        self.headers: list[dict[str, str]] = []
        self.reply: Callable[[int], int] = lambda number: 200
        self.http = ""
        self.grpc = ""

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        self.bodies.append(body)
        self.headers.append(headers)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_seen(span, scope.scope.name, about) for span in scope.spans]

    def wait_for(self, what: Callable[[], Any], timeout: float = 10.0) -> None:
        wait_until(what, f"spans at {self.http}", timeout)

    def of_trace(self, trace: str) -> list[Seen]:
        return [span for span in self.spans if span.trace == trace]

    def tree(self, trace: str) -> list[Node]:
        """The spans of a trace, below those whose parents are not here."""
        nodes = {span.id: Node(span) for span in self.of_trace(trace)}
        roots: list[Node] = []
        for node in sorted(nodes.values(), key=lambda node: (node.span.start, node.span.end)):
            parent = nodes.get(node.span.parent)
            (roots if parent is None else parent.children).append(node)
        return roots


def _attributes(pairs: Sequence[Any]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


def _seen(span: pb.Span, scope: str, resource: dict[str, Any]) -> Seen:
    return Seen(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        status=(pb.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"), span.status.message),
        scope=scope,
        resource=resource,
        event_times=[event.time_unix_nano for event in span.events],
    )


@contextmanager
def collector() -> Iterator[Collector]:
    """One that serves both, until the end of the block."""
    got = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: tests look at what was seen."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            unpack = UNPACK.get(self.headers["Content-Encoding"], bytes)
            status = got.reply(len(got.bodies))
            if status == 200:
                got.take(unpack(body), {name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    got.http = f"http://127.0.0.1:{http.server_port}"
    # In a process of its own: gRPC's threads do not bear that this one forks.
    program = [sys.executable, "-m", "tests.support.otlp_grpc", got.http]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdin is not None and server.stdout is not None
            got.grpc = server.stdout.readline().strip()
            yield got
        finally:
            server.kill()
            http.shutdown()
            http.server_close()
            thread.join(5)


def traceparent(trace: str, span: str = "b7ad6b7169203331") -> str:
    """A producer's, of a sampled trace."""
    return f"00-{trace}-{span}-01"


def now() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()
