"""The queue as its producers and its watchers see it: stream, group, order, bad messages, statistics."""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from typing import Any, cast

import pytest

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.monitor import Command, Monitor
from tests.support.processes import wait_until
from tests.support.producer import bare, processing, succeeded

pytestmark = pytest.mark.every_server


def dead_letters(fleet: Fleet) -> list[dict[str, str]]:
    entries = cast("list[tuple[str, dict[str, str]]]", fleet.client.xrange(f"{fleet.queue}-dead"))
    return [fields for _, fields in entries]


def test_nothing_is_read_before_setup_is_done_and_then_one_entry_for_each_slot(
    fleet: FleetFactory, monitor: Monitor
) -> None:
    slow = fleet("slow_setup", start=False)
    requests = [slow.producer.send({"seconds": 2}) for _ in range(3)]
    if slow.shape == "peer":
        slow.start_peer()
    else:
        slow.start_bridge()
        slow.start_worker()
    wait_until(lambda: slow.client.exists(slow.queue) and slow.client.xinfo_groups(slow.queue), "the group")
    while True:
        pending = slow.pending()
        if slow.client.exists(f"{slow.queue}-setup-time"):
            break
        assert pending == 0, "an entry was read during setup"
        slow.workers[0].check_running()
        time.sleep(0.05)
    slow.producer.wait_for(requests[0], lambda response: True)
    assert slow.pending() == 1
    assert slow.depth() == 3
    assert [slow.producer.wait(request)["output"] for request in requests] == ["slept 2"] * 3
    slow.wait_idle()


def test_one_slot_starts_requests_in_the_order_of_xadd(modes: Fleet, monitor: Monitor) -> None:
    requests = [modes.producer.send({"mode": "hello", "text": str(i)}) for i in range(20)]
    for request in requests:
        modes.producer.wait(request)
    keys = [request.response_queue.encode() for request in requests]
    sets = [command.args[1] for command in monitor.commands() if command.name == "SET" and command.args[1] in keys]
    assert sets == [key for key in keys for _ in range(2)], "start and end of each, one request after the other"


def test_xlen_is_what_waits_and_what_runs(modes: Fleet) -> None:
    running = modes.producer.send({"mode": "sleeps", "seconds": 2})
    modes.producer.wait_for(running, lambda response: True)
    waiting = [modes.producer.send({"mode": "hello"}) for _ in range(4)]
    assert modes.depth() == 5
    assert modes.pending() == 1
    modes.producer.wait(waiting[-1])
    modes.wait_idle()


def test_the_entry_is_gone_once_the_terminal_snapshot_is_there(modes: Fleet) -> None:
    modes.wait_idle()
    for _ in range(20):
        request = modes.producer.send({"mode": "hello"})
        modes.producer.wait(request)
        if modes.shape == "peer":
            modes.wait_idle()
        assert (modes.depth(), modes.pending()) == (0, 0)


@pytest.mark.ours
def test_no_moment_exists_between_the_terminal_set_and_the_ack(modes: Fleet, monitor: Monitor) -> None:
    """They are one script: nothing of another client comes between them."""
    request = modes.producer.send({"mode": "hello"})
    modes.producer.wait(request)
    steps: list[tuple[str, str]] = []
    for command in monitor.commands():
        if command.name == "SET" and command.args[1] == request.response_queue.encode():
            steps.append(("SET", command.client))
        elif command.name in ("XACK", "XDEL") and request.entry.encode() in command.args:
            steps.append((command.name, command.client))
    assert [name for name, _ in steps][1:2] == ["SET"]
    assert sorted(name for name, _ in steps[2:]) == ["XACK", "XDEL"]
    assert {client for _, client in steps[1:]} == {"lua"}


def test_an_entry_deleted_before_its_start_is_skipped(modes: Fleet, monitor: Monitor) -> None:
    running = modes.producer.send({"mode": "sleeps", "seconds": 2})
    modes.producer.wait_for(running, lambda response: True)
    deleted = modes.producer.send({"mode": "hello"})
    after = modes.producer.send({"mode": "hello"})
    modes.client.xdel(modes.queue, deleted.entry)
    assert bare(modes.producer.wait(after)) == succeeded("hello world")
    assert modes.producer.get(deleted) is None
    modes.wait_idle()


@pytest.mark.ours
def test_an_entry_deleted_while_it_runs_is_canceled(modes: Fleet) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30})
    modes.producer.wait_for(request, lambda response: True)
    modes.client.xdel(modes.queue, request.entry)
    # An owner looks at its entry every third of the lease.
    response = bare(modes.producer.wait(request, timeout=15))
    assert response == {"status": "canceled", "output": None, "logs": response["logs"]}
    assert modes.pending() == 0
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.ours
def test_a_trimmed_stream_cancels_what_runs_and_goes_on(modes: Fleet) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 30})
    modes.producer.wait_for(request, lambda response: True)
    waiting = [modes.producer.send({"mode": "hello"}) for _ in range(3)]
    modes.client.xtrim(modes.queue, maxlen=0)
    assert modes.producer.wait(request)["status"] == "canceled"
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")
    assert [modes.producer.get(one) for one in waiting] == [None] * 3
    modes.wait_idle()


def test_responses_do_not_expire(modes: Fleet) -> None:
    request = modes.producer.send({"mode": "hello"})
    modes.producer.wait(request)
    assert modes.client.ttl(request.response_queue) == -1


# Bad messages


def answered(text: Any, queue: str) -> tuple[Any, str]:
    """The message with a response key of its own in it."""
    key = f"{queue}-{uuid.uuid4().hex}"
    return {**text, "response_queue": key}, key


@pytest.mark.ours
@pytest.mark.parametrize(
    "message",
    [
        {"input": []},
        {"input": "text"},
        {"input": 1},
        {"input": {"mode": "hello"}, "cancel_key": 5},
        {"input": {"mode": "hello"}, "id": ["a"]},
        {"input": {"mode": "hello"}, "context": "text"},
        {"input": {"mode": "hello"}, "context": {"a": 1}},
        {"input": {"mode": "hello"}, "output_upload_urls": "http://localhost/"},
        {"input": {"mode": "hello"}, "output_upload_urls": [1]},
        {"input": {"mode": "hello"}, "traceparent": 1},
    ],
    ids=json.dumps,
)
def test_a_message_of_wrong_types_is_answered_once_and_kept_with_the_reason(
    modes: Fleet, monitor: Monitor, message: dict[str, Any]
) -> None:
    message, key = answered(message, modes.queue)
    modes.producer.send_raw(json.dumps(message))
    response = modes.producer.wait(key)
    assert response["status"] == "failed" and response["output"] is None and response["logs"] == []
    at_fault = (
        next(name for name in message if name not in ("input", "response_queue")) if len(message) > 2 else "input"
    )
    assert at_fault in response["error"]
    assert len(monitor.sets(key)) == 1
    copy = dead_letters(modes)[-1]
    assert json.loads(copy["value"]) == message
    assert response["error"] in copy.values()
    modes.wait_idle()


@pytest.mark.ours
@pytest.mark.parametrize(
    "value",
    [
        "",
        "no JSON",
        "{",
        '{"input": {"mode": "hello"}',
        "[]",
        '"text"',
        "null",
        "1",
        "{}",
        '{"input": {"mode": "hello"}}',
        '{"input": {"mode": "hello"}, "response_queue": null}',
        '{"input": {"mode": "hello"}, "response_queue": 5}',
        '{"input": {"mode": "hello"}, "response_queue": ""}',
        '{"response_queue": NaN}',
        "[" * 5000,
        '{"a":' * 5000,
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_message_that_names_no_response_key_is_kept_with_the_reason(modes: Fleet, value: str) -> None:
    modes.client.delete(f"{modes.queue}-dead")
    modes.producer.send_raw(value)
    wait_until(lambda: dead_letters(modes), "the copy")
    modes.wait_idle()
    [copy] = dead_letters(modes)
    assert copy["value"] == value and copy["reason"]
    assert modes.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.ours
@pytest.mark.parametrize("text", ['"input": {"mode": "\udcff"}', '"input": {"mode": "hello"', '"input": NaN'])
def test_a_message_that_is_not_json_is_answered_where_its_response_key_can_be_read(modes: Fleet, text: str) -> None:
    key = f"{modes.queue}-{uuid.uuid4().hex}"
    modes.producer.send_raw(f'{{"response_queue": "{key}", {text}}}'.encode(errors="surrogateescape"))
    wait_until(lambda: modes.client.xlen(f"{modes.queue}-dead"), "the copy")
    modes.wait_idle()
    modes.client.delete(f"{modes.queue}-dead")
    if text.endswith(("}", "NaN")):
        response = modes.producer.wait(key)
        assert response["status"] == "failed" and response["error"]


@pytest.mark.ours
def test_a_message_that_is_too_large_is_answered_with_the_limit(modes: Fleet) -> None:
    modes.client.delete(f"{modes.queue}-dead")
    request = modes.producer.send({"mode": "hello", "text": "x" * (17 << 20)})
    response = modes.producer.wait(request)
    assert response["status"] == "failed" and str(16 << 20) in response["error"]
    assert modes.client.xlen(f"{modes.queue}-dead") == 1
    modes.wait_idle()
    modes.client.delete(f"{modes.queue}-dead")


@pytest.mark.ours
def test_an_entry_without_the_field_value_is_kept_with_the_reason(modes: Fleet) -> None:
    modes.client.delete(f"{modes.queue}-dead")
    modes.client.xadd(modes.queue, {"other": "field", "second": "one"})
    wait_until(lambda: dead_letters(modes), "the copy")
    modes.wait_idle()
    assert "value" in " ".join(dead_letters(modes)[0].values())


@pytest.mark.ours
def test_an_entry_with_more_fields_is_served(modes: Fleet) -> None:
    key = f"{modes.queue}-more"
    message = json.dumps({"input": {"mode": "hello"}, "response_queue": key})
    modes.client.xadd(modes.queue, {"before": "1", "value": message, "after": "2"})
    assert bare(modes.producer.wait(key)) == succeeded("hello world")


@pytest.mark.ours
def test_unknown_fields_are_ignored(modes: Fleet, monitor: Monitor) -> None:
    extra = {"version": "v", "created_at": "now", "output_file_prefix": "p", "anything": {"at": ["all"]}}
    assert modes.producer.sequence(monitor, {"mode": "hello"}, **extra) == [processing(), succeeded("hello world")]


@pytest.mark.ours
@pytest.mark.parametrize("id", ["../../etc", "a b\nc", "x" * 5000, "", "ü", "{}", "*"])
def test_an_id_of_any_text_is_served(modes: Fleet, id: str) -> None:
    assert modes.producer.predict({"mode": "hello"}, id=id) == succeeded("hello world")


@pytest.mark.ours
def test_two_requests_with_the_same_id_are_two_predictions(modes: Fleet) -> None:
    first = modes.producer.send({"mode": "sleeps", "seconds": 0.2, "text": "one"}, id="the-same")
    second = modes.producer.send({"mode": "sleeps", "seconds": 0.2, "text": "two"}, id="the-same")
    assert bare(modes.producer.wait(first)) == succeeded("one")
    assert bare(modes.producer.wait(second)) == succeeded("two")


# Statistics


def test_the_run_times_are_a_stream_of_the_last_hundred_exactly(modes: Fleet) -> None:
    requests = [modes.producer.send({"mode": "hello"}) for _ in range(120)]
    modes.producer.wait(requests[-1], timeout=30)
    modes.wait_idle()
    stream = f"{modes.queue}-run-time"
    if modes.shape != "peer":
        assert modes.client.xlen(stream) == 100
    entries = cast("list[tuple[str, dict[str, str]]]", modes.client.xrange(stream))
    assert all(set(fields) == {"duration"} and 0 <= float(fields["duration"]) < 5 for _, fields in entries)


def test_a_run_time_is_that_of_its_prediction_in_seconds(modes: Fleet) -> None:
    request = modes.producer.send({"mode": "sleeps", "seconds": 0.3})
    modes.producer.wait(request)
    modes.wait_idle()
    if modes.shape == "peer":
        wait_until(lambda: modes.client.xrevrange(f"{modes.queue}-run-time", count=1), "the duration")
        time.sleep(0.1)
    [(_, fields)] = cast("list[tuple[str, dict[str, str]]]", modes.client.xrevrange(f"{modes.queue}-run-time", count=1))
    assert 0.3 <= float(fields["duration"]) < 1.0


def test_each_setup_is_counted_once(modes: Fleet) -> None:
    entries = cast("list[tuple[str, dict[str, str]]]", modes.client.xrange(f"{modes.queue}-setup-time"))
    # Runners that were killed by tests before this one were set up again.
    assert len(entries) >= 1
    assert all(set(fields) == {"duration"} and float(fields["duration"]) > 0 for _, fields in entries)


# What the model may see


@pytest.mark.ours
def test_the_model_sees_no_credential_and_no_module_of_ours(modes: Fleet) -> None:
    environment = modes.producer.predict({"mode": "environment"})["output"]
    assert not [name for name in environment if "REDIS" in name or "BROKER" in name or name.startswith("COG_CELERY_")]
    assert str(modes.server.port) not in json.dumps(environment)
    loaded = modes.producer.predict({"mode": "loaded"})["output"]
    assert not {"redis", "celery", "kombu", "msgspec", "cog_celery", "yaml", "urllib3", "boto3"} & set(loaded)


@pytest.mark.ours
def test_the_model_runs_in_its_own_folder(modes: Fleet) -> None:
    assert modes.producer.predict({"mode": "identity"})["output"]["folder"] == str(modes.model)


@pytest.mark.ours
def test_no_input_is_ever_in_the_broker(modes: Fleet, monitor: Monitor) -> None:
    """Tickets carry ids; the request stays in its stream."""
    secret = f"secret-{uuid.uuid4().hex}"
    requests = [
        modes.producer.send({"mode": mode, "text": secret}, cancel_key=f"{secret}-cancel-{mode}")
        for mode in ("hello", "fails", "no_such_mode", "sleeps")
    ]
    requests.append(modes.producer.send({"mode": "hello", "count": secret}))
    for request in requests:
        modes.producer.wait(request)
    ids = [request.id.encode() for request in requests]

    def broker() -> list[bytes]:
        return [said for said in map(in_clear, monitor.commands()) if b"cog-celery:broker:" in said]

    # Celery's events go out every tenth of a second.
    wait_until(lambda: all(any(id in said for said in broker()) for id in ids), "the events of all of them")
    assert not [said for said in broker() if secret.encode() in said]
    for key in cast("list[str]", list(modes.client.scan_iter("cog-celery:*", count=1000))):
        assert secret not in key


def in_clear(command: Command) -> bytes:
    """All arguments, and the bodies of Celery's messages in them, which are base64."""
    said = b" ".join(command.args)
    bodies = re.findall(rb'"body": ?"([A-Za-z0-9+/=]*)"', said)
    return b" ".join([said, *map(base64.b64decode, bodies)])
