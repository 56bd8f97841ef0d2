"""`python -m tests.support.otlp_grpc URL`: takes traces by gRPC and passes them on by HTTP; prints where it listens.

It must not know what is in them. It ends with its standard input.
"""

from __future__ import annotations

import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Servicer(service.TraceServiceServicer):
    def __init__(self, url: str) -> None:
        self._url = url

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        post = urllib.request.Request(self._url, request.SerializeToString(), {"X-Grpc": "1", **headers})
        with urllib.request.urlopen(post, timeout=5):
            return ExportTraceServiceResponse()


def main(url: str) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    service.add_TraceServiceServicer_to_server(Servicer(url), server)  # type: ignore[no-untyped-call]
    print(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main(sys.argv[1])
