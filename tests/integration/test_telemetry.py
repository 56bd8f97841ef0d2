"""Traces: whole trees of spans as a collector gets them; and that one in trouble has no effect on predictions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.otlp import Collector, Node, Seen, collector, traceparent
from tests.support.processes import wait_until
from tests.support.producer import Request
from tests.support.servers import RedisServer
from tests.support.web import Web, closed_port, hang, reply

pytestmark = pytest.mark.ours

PRODUCER = "b7ad6b7169203331"
"""The span that requests come from."""
SECRETS = {name: f"canary-{name}-5f0c" for name in ("input", "query", "password", "header", "environment")}
TURN, DISPATCH = "run/cog_celery.turn", "apply_async/cog_celery.turn"
MESSAGE, PREDICT = "redis_queue.process_message", "predictor.predict"
UPLOAD, COMMIT = "redis_queue.upload", "redis_queue.commit"


def otel(endpoint: str, protocol: str = "http/protobuf", **more: str) -> dict[str, str]:
    return {
        "OTEL_SERVICE_NAME": "the-model",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {SECRETS['header']}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "SOME_TOKEN": SECRETS["environment"],
        **more,
    }


@dataclass
class Traced:
    """A fleet, whose worker speaks HTTP and whose bridge speaks gRPC to one collector."""

    fleet: Fleet
    got: Collector
    web: Web

    def send(self, trace: str, input: dict[str, Any] | None = None, **fields: Any) -> Request:
        fields = {"traceparent": traceparent(trace, PRODUCER), **fields}
        return self.fleet.producer.send({"text": SECRETS["input"], **(input or {})}, **fields)

    def idle(self) -> None:
        """Wait for the end of the turn: what comes next comes with a ticket."""
        wait_until(lambda: self.fleet.credits() == 1, "the slot to be idle")

    def message(self, trace: str) -> Node:
        """The node of the trace's message, with what is below it; above it is what is to be there."""
        return message(self.got, trace)

    def predicted(self, input: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], Node]:
        """A response, and the node of its message."""
        trace = uuid.uuid4().hex
        response = self.fleet.producer.wait(self.send(trace, input, **fields))
        return response, self.message(trace)


def message(got: Collector, trace: str) -> Node:
    """The node of the trace's one message, in the whole tree: the turn that came with its ticket is above it, and what
    was sent to a turn that went on is linked to that.
    """
    got.wait_for(lambda: [span for span in got.of_trace(trace) if span.name == MESSAGE])
    [span] = [span for span in got.of_trace(trace) if span.name == MESSAGE]
    turns: Callable[[], list[Seen]] = lambda: [  # noqa: E731
        one for one in got.spans if one.name == TURN and (one.id == span.parent or (one.trace, one.id) in span.links)
    ]
    got.wait_for(turns)
    if span.links:
        [root] = got.tree(trace)
        assert root.span == span and span.parent == PRODUCER
        return root
    got.wait_for(lambda: DISPATCH in [one.name for one in got.of_trace(trace)])
    [root] = got.tree(trace)
    assert root.shape()[0] == DISPATCH and root.span.parent == PRODUCER
    [turn] = root.children
    [node] = turn.children
    assert turn.span == turns()[0] and node.span == span
    return node


@pytest.fixture(scope="module")
def traced(shared_fleet: FleetFactory, redis_server: RedisServer) -> Iterator[Traced]:
    with collector() as got, Web() as web:
        web.on("*", reply(200))
        redis_server.client.acl_setuser(
            "canary", enabled=True, passwords=[f"+{SECRETS['password']}"], keys="*", channels="*", commands=["+@all"]
        )
        url = f"redis://canary:{SECRETS['password']}@127.0.0.1:{redis_server.port}/0"
        options: dict[str, Any] = {"lease": 1, "predict_timeout": 2, "cancel_grace": 0.5}
        fleet = shared_fleet("modes", start=False, upload_url=f"{web.url}/in?sig={SECRETS['query']}", **options)
        fleet.start_bridge(env={**otel(got.grpc, "grpc"), "REDIS_URL": url})
        fleet.start_worker(env={**otel(got.http, OTEL_EXPORTER_OTLP_COMPRESSION="gzip"), "REDIS_URL": url})
        fleet.wait_ready()
        yield Traced(fleet, got, web)


def test_a_worker_s_start_is_a_trace(traced: Traced) -> None:
    traced.got.wait_for(lambda: [span for span in traced.got.spans if span.name == "redis_queue.setup"])
    [setup] = [span for span in traced.got.spans if span.name == "redis_queue.setup"]
    [tree] = traced.got.tree(setup.trace)
    assert tree.shape() == ("redis_queue.setup", [("runner.start", ["predictor.setup"])])
    assert setup.parent == "" and setup.status[0] == "UNSET"
    assert setup.event_names == ["spawning predictor process"]
    assert setup.scope == "cog" and setup.resource["service.name"] == "the-model"
    start, model = tree.children[0].span, tree.children[0].children[0].span
    assert setup.start <= start.start <= model.start <= model.end <= start.end <= setup.end


def test_a_setup_that_fails_is_an_error_on_each_of_its_spans(fleet: FleetFactory) -> None:
    with collector() as got:
        broken = fleet("setup_raises", start=False)
        worker = broken.start_worker(env=otel(got.grpc, "grpc"))
        assert worker.wait() == 1
        broken.discard()
        [tree] = [root for span in got.spans[:1] for root in got.tree(span.trace)]
        assert tree.shape() == ("redis_queue.setup", [("runner.start", ["predictor.setup"])])
        for span in (tree.span, tree.children[0].span, tree.children[0].children[0].span):
            assert span.status == ("ERROR", "SetupError")
            assert span.events[-1] == ("exception", {"exception.type": "SetupError"})
        assert b"no weights here" not in b"".join(got.bodies)


def test_the_first_prediction_of_a_turn_is_below_the_turn_and_the_next_one_is_linked_to_it(traced: Traced) -> None:
    traced.idle()
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    requests = [
        traced.send(first, {"mode": "sleeps", "seconds": 0.2}, id="one-of-two"),
        traced.send(second, {"mode": "hello"}, tracestate="vendor=x"),
    ]
    for request in requests:
        assert traced.fleet.producer.wait(request)["status"] == "succeeded"
    traced.got.wait_for(lambda: TURN in [span.name for span in traced.got.of_trace(first)])
    traced.got.wait_for(lambda: DISPATCH in [span.name for span in traced.got.of_trace(first)])

    [tree] = traced.got.tree(first)
    assert tree.shape() == (DISPATCH, [(TURN, [(MESSAGE, [PREDICT, COMMIT])])])
    assert tree.span.parent == PRODUCER
    turn, message = tree.children[0].span, tree.children[0].children[0].span
    predict, commit = (node.span for node in tree.children[0].children[0].children)
    assert message.attributes == {
        "time_in_queue": message.attributes["time_in_queue"],
        "queue": traced.fleet.queue,
        "prediction_id": "one-of-two",
        "entry": requests[0].entry,
        "attempt": 1,
        "slot": 0,
        "outcome": "succeeded",
    }
    assert 0 < message.attributes["time_in_queue"] < 5
    assert message.event_names == ["received first output"] and message.links == []
    assert {span.status for span in (turn, message, predict, commit)} == {("UNSET", "")}
    assert 0.2 <= predict.seconds < 0.4, "the runner's own time"
    assert turn.start <= message.start <= predict.start < predict.end <= message.end
    assert predict.end <= commit.start + 1_000_000 and commit.end <= message.end <= turn.end
    assert predict.start <= message.event_times[0] <= message.end

    [tree] = traced.got.tree(second)
    assert tree.shape() == (MESSAGE, [PREDICT, COMMIT])
    assert tree.span.parent == PRODUCER
    assert tree.span.links == [(first, turn.id)]
    assert tree.span.attributes["time_in_queue"] > 0.1


def test_progressive_output_has_its_first_and_its_final_event(traced: Traced) -> None:
    response, message = traced.predicted({"mode": "yields", "seconds": 0.1, "count": 2})
    assert response["status"] == "succeeded"
    assert message.span.event_names == ["received first output", "received final output"]
    first, final = message.span.event_times
    assert 0.1 <= (final - first) / 1e9 < 0.5
    assert message.shape() == (MESSAGE, [PREDICT, COMMIT])


@pytest.mark.parametrize(
    ("input", "fault", "events", "text"),
    [
        ({"mode": "fails"}, "ModelError", [], None),
        ({"mode": "fails_after_output"}, "ModelError", ["received first output"], None),
        ({"mode": "sleeps", "seconds": 30}, "PlatformError", [], "Prediction timed out"),
        ({"mode": "kills_itself"}, "PlatformError", [], "exitcode -9"),
    ],
    ids=["model failure", "after output", "timeout", "crash"],
)
def test_an_error_is_recorded_on_the_prediction_and_its_message(
    traced: Traced, input: dict[str, Any], fault: str, events: list[str], text: str | None
) -> None:
    response, message = traced.predicted(input)
    assert response["status"] == "failed"
    assert message.shape() == (MESSAGE, [PREDICT, COMMIT])
    assert message.span.attributes["outcome"] == "failed"
    for span in (message.span, message.children[0].span):
        assert span.status == ("ERROR", fault)
        name, attributes = span.events[-1]
        assert name == "exception" and attributes["exception.type"] == fault
        assert (text in attributes["exception.message"]) if text else ("exception.message" not in attributes)
    assert message.span.event_names == [*events, "exception"]


def test_a_runner_that_is_started_again_is_a_trace_of_its_own(traced: Traced) -> None:
    before = len(roots(traced.got, "runner.start"))
    traced.predicted({"mode": "kills_itself"})
    traced.got.wait_for(lambda: len(roots(traced.got, "runner.start")) > before)
    assert roots(traced.got, "runner.start")[-1].shape() == ("runner.start", ["predictor.setup"])


def roots(got: Collector, name: str) -> list[Node]:
    return [root for span in got.spans if span.name == name and not span.parent for root in got.tree(span.trace)]


def test_a_refused_input_is_an_error_without_a_prediction(traced: Traced) -> None:
    response, message = traced.predicted({"mode": "hello", "count": SECRETS["input"]})
    assert response["status"] == "failed"
    assert message.shape() == (MESSAGE, [COMMIT])
    assert message.span.status == ("ERROR", "InvalidInput")
    assert message.span.events == [("exception", {"exception.type": "InvalidInput"})]


def test_a_message_that_is_none_is_an_error_too(traced: Traced) -> None:
    entry = traced.fleet.producer.send_raw(json.dumps({"input": SECRETS["input"]}))
    of_it: Callable[[], list[Any]] = lambda: [  # noqa: E731
        span for span in traced.got.spans if span.attributes.get("entry") == entry
    ]
    traced.got.wait_for(of_it)
    [span] = of_it()
    assert (span.name, span.status, span.attributes["outcome"]) == (MESSAGE, ("ERROR", "InvalidInput"), "refused")


def test_a_canceled_prediction_is_no_error(traced: Traced) -> None:
    trace = uuid.uuid4().hex
    request = traced.send(trace, {"mode": "sleeps", "seconds": 1.8})
    traced.fleet.producer.wait_for(request, lambda response: response["status"] == "processing")
    traced.fleet.producer.cancel(request)
    assert traced.fleet.producer.wait(request)["status"] == "canceled"
    message = traced.message(trace)
    assert message.shape() == (MESSAGE, [PREDICT, COMMIT])
    assert message.span.status == ("UNSET", "") and message.span.attributes["outcome"] == "canceled"


def test_an_upload_has_a_span_and_carries_the_context_of_its_message(traced: Traced) -> None:
    response, message = traced.predicted({"mode": "a_file"}, tracestate="vendor=x")
    assert response["status"] == "succeeded"
    names = [node.span.name for node in message.children]
    assert sorted(names) == [PREDICT, COMMIT, UPLOAD]
    upload = message.children[names.index(UPLOAD)].span
    assert upload.attributes == {"bytes": len(SECRETS["input"])} and upload.status == ("UNSET", "")
    headers = traced.web.seen[-1].headers
    assert headers["traceparent"] == f"00-{message.span.trace}-{message.span.id}-01"
    assert headers["tracestate"] == "vendor=x"


def test_a_refused_upload_is_not_the_predictor_s_error(traced: Traced) -> None:
    traced.web.on("*", reply(403), reply(200))
    response, message = traced.predicted({"mode": "a_file"})
    assert response["status"] == "failed"
    status = {node.span.name: node.span.status[0] for node in message.children}
    assert status == {PREDICT: "UNSET", UPLOAD: "ERROR", COMMIT: "UNSET"}
    assert message.span.status == ("ERROR", "PlatformError")


@pytest.mark.parametrize("hostile", ["00-" + "0" * 32 + "-b7ad6b7169203331-01", "no trace", "ff-" + "1" * 51, 'a"\\'])
def test_a_context_that_cannot_be_read_is_none(traced: Traced, hostile: str) -> None:
    id = f"hostile-{uuid.uuid4().hex}"
    response = traced.fleet.producer.predict({"mode": "hello"}, id=id, traceparent=hostile, tracestate=hostile)
    assert response["status"] == "succeeded"
    traced.got.wait_for(lambda: [span for span in traced.got.spans if span.attributes.get("prediction_id") == id])
    [span] = [span for span in traced.got.spans if span.attributes.get("prediction_id") == id]
    assert span.trace.strip("0") and span.trace not in hostile


def test_a_producer_s_decision_not_to_sample_holds(traced: Traced) -> None:
    unsampled, sampled = uuid.uuid4().hex, uuid.uuid4().hex
    asked = traced.send(unsampled, {"mode": "a_file"}, traceparent=f"00-{unsampled}-{PRODUCER}-00")
    assert traced.fleet.producer.wait(asked)["status"] == "succeeded"
    assert traced.web.seen[-1].headers["traceparent"].startswith(f"00-{unsampled}-")
    assert traced.web.seen[-1].headers["traceparent"].endswith("-00")
    traced.fleet.producer.wait(traced.send(sampled, {"mode": "hello"}))
    traced.message(sampled)
    assert traced.got.of_trace(unsampled) == []


def test_nothing_secret_is_exported_and_no_polling_is_seen(traced: Traced) -> None:
    """What all tests above have sent."""
    assert len(traced.got.spans) > 30
    starts = {"redis_queue.setup", "runner.start", "predictor.setup"}
    assert {span.name for span in traced.got.spans} - starts == {DISPATCH, TURN, MESSAGE, PREDICT, UPLOAD, COMMIT}
    assert any(SECRETS["header"] in headers.get("authorization", "") for headers in traced.got.headers)
    bodies = b"".join(traced.got.bodies)
    assert [name for name, secret in SECRETS.items() if secret.encode() in bodies] == []
    log = traced.fleet.log()
    told = [name for name in ("password", "header", "environment", "query") if SECRETS[name] in log]
    assert told == []


def test_a_retry_on_another_worker_belongs_to_the_same_trace_and_its_story_is_told(fleet: FleetFactory) -> None:
    with collector() as got:
        pair = fleet("modes", start=False, workers=2, lease=1, log_format="json", predict_timeout=4)
        pair.start_bridge(env=otel(got.http))
        for _ in range(2):
            pair.start_worker(env=otel(got.grpc, "grpc"))
        pair.wait_ready()
        trace = uuid.uuid4().hex
        request = pair.producer.send({"mode": "sleeps", "seconds": 3}, traceparent=traceparent(trace, PRODUCER))
        pair.producer.wait_for(request, lambda response: response["status"] == "processing")
        wait_until(lambda: '"event":"running"' in pair.log(), "the log to say so")
        [pending] = pair.client.xpending_range(pair.queue, pair.queue, "-", "+", 1)
        [lost] = [worker for i, worker in enumerate(pair.workers) if str(pending["consumer"]).startswith(f"w{i}-")]
        lost.kill()
        lost.wait(5)
        assert pair.producer.wait(request)["status"] == "succeeded"
        got.wait_for(lambda: [span for span in got.of_trace(trace) if span.name == TURN])

        spans = got.of_trace(trace)
        assert [span.parent for span in spans if span.name == DISPATCH] == [PRODUCER, PRODUCER]
        [tree] = [root for root in got.tree(trace) if root.children]
        assert tree.shape() == (DISPATCH, [(TURN, [(MESSAGE, [PREDICT, COMMIT])])])
        assert tree.children[0].children[0].span.attributes["attempt"] == 2

        wait_until(lambda: '"event":"finished"' in pair.log(), "its last line")
        lines = [line for child in pair.children for line in child.text().splitlines()]
        story = [json.loads(line) for line in lines if request.id in line]
        told = {(line["event"], line["attempt"]) for line in story}
        assert told == {("running", 1), ("reclaimed", 2), ("running", 2), ("finished", 2)}
        assert {line["trace_id"] for line in story} == {trace}
        assert {line["entry"] for line in story} == {request.entry}
        [finished] = [line for line in story if line["event"] == "finished"]
        assert finished["outcome"] == "succeeded" and 3 <= finished["predict_time"] < 3.9
        assert all(json.loads(line)["level"] for line in lines), "every line is an object"

        # The worker that is left speaks gRPC: what comes this way is the same.
        cases: list[tuple[dict[str, Any], list[str], str]] = [
            ({"mode": "hello"}, [PREDICT, COMMIT], "UNSET"),
            ({"mode": "yields", "seconds": 0.01}, [PREDICT, COMMIT], "UNSET"),
            ({"mode": "hello", "count": "many"}, [COMMIT], "ERROR"),
            ({"mode": "fails"}, [PREDICT, COMMIT], "ERROR"),
            ({"mode": "sleeps", "seconds": 30}, [PREDICT, COMMIT], "ERROR"),
            ({"mode": "kills_itself"}, [PREDICT, COMMIT], "ERROR"),
        ]
        for input, below, status in cases:
            trace = uuid.uuid4().hex
            pair.producer.wait(pair.producer.send(input, traceparent=traceparent(trace, PRODUCER)))
            node = message(got, trace)
            assert (node.shape(), node.span.status[0]) == ((MESSAGE, below), status), input


def test_a_collector_in_trouble_has_no_effect_on_predictions(fleet: FleetFactory) -> None:
    with Web() as web:
        web.on("*", hang)
        small = {
            "OTEL_BSP_MAX_QUEUE_SIZE": "32",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        lonely = fleet("modes", start=False, lease=1)
        lonely.start_bridge(env=otel(f"http://{closed_port()}", "grpc", **small))
        lonely.start_worker(env=otel(web.url, **small))
        lonely.wait_ready()
        requests = [lonely.producer.send({"mode": "hello"}) for _ in range(200)]
        for request in requests:
            assert lonely.producer.wait(request)["status"] == "succeeded"
        assert web.seen, "it was asked"
        complaint = "does not take our traces"
        wait_until(lambda: lonely.bridges[0].text().count(complaint) == 1, "the bridge to say so, once")
        wait_until(lambda: lonely.workers[0].text().count(complaint) == 1, "the worker to say so, once")
        assert SECRETS["header"] not in lonely.log()
        began = time.monotonic()
        lonely.terminate()
        for child in (*lonely.bridges, *lonely.workers):
            assert child.wait(10) == 0
        assert time.monotonic() - began < 10, "a dead collector holds a drain up for two seconds at most"
