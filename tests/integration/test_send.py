"""`cog-celery send` and `cancel` as a person uses them, against a real server, with a consumer that plays a script."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import redis

from cog_celery.producer import sending_many
from tests.support.processes import wait_until
from tests.support.s3 import BUCKET, Rclone
from tests.support.servers import UNDER_ACL, RedisServer, as_user
from tests.support.web import Web, reply

ROOT = Path(__file__).parents[2]

Request = dict[str, Any]
Script = Callable[["Consumer", Request], None]


class Consumer:
    """Serves one queue as a worker would, from a thread: takes entries, and SETs what its script says."""

    def __init__(self, server: RedisServer, queue: str, script: Script) -> None:
        self.client = redis.Redis.from_url(server.url, decode_responses=True, protocol=2)
        self.queue = queue
        self.requests: list[Request] = []
        self._script = script
        self._over = threading.Event()
        self.client.xgroup_create(queue, queue, "0", mkstream=True)
        self._thread = threading.Thread(target=self._serve, name="consumer", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            answer: Any = self.client.xreadgroup(self.queue, "one", {self.queue: ">"}, count=1, block=100)
            for _, entries in answer or ():
                for entry, fields in entries:
                    request = json.loads(fields["value"])
                    self.requests.append(request)
                    self._script(self, request)
                    self.client.xack(self.queue, self.queue, entry)
                    self.client.xdel(self.queue, entry)

    def set(self, request: Request, status: str, output: Any = None, logs: Any = (), **more: Any) -> None:
        logs = logs if isinstance(logs, str) else list(logs)
        snapshot = {"status": status, "output": output, "logs": logs, **more}
        self.client.set(request["response_queue"], json.dumps(snapshot))

    def wait_for_cancel(self, request: Request) -> None:
        wait_until(lambda: self.client.exists(request["cancel_key"]), "the cancel key")

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self.client.close()


may_look = pytest.mark.skipif(UNDER_ACL, reason="a producer may not look at its queue, nor listen by a pattern")


@pytest.fixture
def queue() -> str:
    return f"q-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def consumer(redis_server: RedisServer, queue: str) -> Iterator[Callable[[Script], Consumer]]:
    consumers: list[Consumer] = []

    def make(script: Script) -> Consumer:
        consumers.append(Consumer(redis_server, queue, script))
        return consumers[-1]

    yield make
    for each in consumers:
        each.stop()


def environment(server: RedisServer, role: str = "producer") -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("COG_CELERY_", "REDIS_URL"))}
    return env | {"PYTHONPATH": str(ROOT), "REDIS_URL": as_user(role, server.url), "PYTHONWARNINGS": "error"}


def start(
    server: RedisServer, *arguments: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cog_celery", *arguments],
        env=environment(server, "admin" if arguments[0] == "cancel" else "producer") | (env or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def finish(process: subprocess.Popen[str], stdin: str | None = None) -> tuple[int, str, str]:
    out, err = process.communicate(stdin, timeout=30)
    return process.returncode, out, err


def echo(consumer: Consumer, request: Request) -> None:
    consumer.set(request, "processing")
    consumer.set(request, "succeeded", request["input"])


def test_piped_it_prints_the_terminal_snapshot_alone(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    served = consumer(echo)
    status, out, err = finish(
        start(redis_server, "send", "--queue", queue, "-i", "text=grüße=1", "-i", "n=1", "-i", "n=2")
    )
    assert (status, err) == (0, "")
    assert json.loads(out) == {"status": "succeeded", "output": {"text": "grüße=1", "n": ["1", "2"]}, "logs": []}
    assert out.count("\n") == 1
    request = served.requests[0]
    assert set(request) == {"id", "input", "response_queue", "cancel_key"}


def test_it_leaves_no_key_behind_for_ever(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    served = consumer(echo)
    assert finish(start(redis_server, "send", "--queue", queue))[0] == 0
    request = served.requests[0]
    assert 0 < redis_server.client.ttl(request["response_queue"]) <= 3600
    assert not redis_server.client.exists(request["cancel_key"])


def test_inputs_come_from_json_files_and_standard_input(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer], tmp_path: Path
) -> None:
    consumer(echo)
    photo = tmp_path / "photo.webp"
    photo.write_bytes(b"\x00\xffphoto")
    inputs = tmp_path / "inputs.json"
    inputs.write_text('{"number": 3, "text": "from file"}')
    uri = "data:image/webp;base64," + base64.b64encode(photo.read_bytes()).decode()

    _, out, _ = finish(start(redis_server, "send", "--queue", queue, "--json", f"@{inputs}", "-i", f"image=@{photo}"))
    assert json.loads(out)["output"] == {"number": 3, "text": "from file", "image": uri}

    process = start(redis_server, "send", "--queue", queue, "--json", "-", "-i", "text=wins", stdin=subprocess.PIPE)
    _, out, _ = finish(process, '{"text": "loses", "list": [1, null]}')
    assert json.loads(out)["output"] == {"text": "wins", "list": [1, None]}


def test_text_shows_logs_and_outputs_as_they_come_once_each(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    go_on = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing", None, ["loading"])
        consumer.set(request, "processing", ["one"], ["loading", "step \x1b[2J1"])
        go_on.wait(10)
        consumer.set(request, "processing", ["one", {"a": 1}], ["loading", "step \x1b[2J1", "step 2"])
        consumer.set(request, "succeeded", ["one", {"a": 1}], ["loading", "step \x1b[2J1", "step 2"])

    consumer(script)
    process = start(redis_server, "send", "--queue", queue, "--output", "text")
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line.rstrip())
        if line.startswith("output[0]"):
            go_on.set()  # only now does the rest exist
    assert finish(process)[0] == 0
    assert [line for line in seen if not line.startswith(("sent ", "processing "))][:-1] == [
        "loading",
        "step \\x1b[2J1",
        "output[0]: one",
        "step 2",
        'output[1]: {"a": 1}',
    ]
    assert re.fullmatch(r"succeeded in \d+\.\d s", seen[-1])


def test_the_other_dialect_and_long_files_are_shown_as_well(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing", None, "one\ntw")
        consumer.set(request, "processing", None, "one\ntwo\n")
        output = {"image": "data:image/png;base64," + "A" * 100_000}
        consumer.set(request, "succeeded", output, "one\ntwo\n", started_at="…", metrics={"predict_time": 1})

    consumer(script)
    status, out, _ = finish(start(redis_server, "send", "--queue", queue, "--output", "text"))
    lines = out.splitlines()
    assert status == 0
    assert lines.count("one") == lines.count("two") == 1
    assert 'output: {"image": "data:image/png;base64,AAAAAAAAAAAA… (73.2 KiB)"}' in lines


def test_a_failed_prediction_is_exit_status_1_with_its_error(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    consumer(lambda consumer, request: consumer.set(request, "failed", error="over the cliff"))
    status, out, _ = finish(start(redis_server, "send", "--queue", queue, "--output", "text"))
    assert status == 1
    assert re.search(r"^failed in .* s: over the cliff$", out, re.MULTILINE)
    assert finish(start(redis_server, "send", "--queue", queue))[0] == 1


def test_ctrl_c_cancels_and_goes_on_to_the_end(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing", ["half"])
        consumer.wait_for_cancel(request)
        assert consumer.client.ttl(request["cancel_key"]) > 0
        consumer.set(request, "canceled", ["half"])

    served = consumer(script)
    process = start(redis_server, "send", "--queue", queue)
    wait_until(lambda: served.requests, "the request")
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130
    assert json.loads(out)["status"] == "canceled"
    assert "canceling" in err


def test_a_second_ctrl_c_leaves_at_once(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    over = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing")
        over.wait(20)

    served = consumer(script)
    process = start(redis_server, "send", "--queue", queue)
    wait_until(lambda: served.requests, "the request")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: redis_server.client.exists(served.requests[0]["cancel_key"]), "the cancel key")
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    over.set()
    assert (status, out) == (130, "")
    assert served.requests[0]["response_queue"] in err


def leave(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, and once more as soon as it says that it may be."""
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert "canceling" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


@may_look
def test_it_says_so_when_nobody_serves_the_queue(redis_server: RedisServer, queue: str) -> None:
    process = start(redis_server, "send", "--queue", queue)
    assert process.stderr is not None
    hint = process.stderr.readline()
    assert "nobody serves" in hint and queue in hint and "1 request" in hint
    leave(process)


@may_look
def test_a_request_that_is_gone_without_an_answer_is_not_waited_for(redis_server: RedisServer, queue: str) -> None:
    process = start(redis_server, "send", "--queue", queue)
    wait_until(lambda: redis_server.client.xlen(queue), "the request")
    redis_server.client.delete(queue)
    status, out, err = finish(process)
    assert (status, out) == (1, "")
    assert "is gone from" in err and err.count("\n") == 1


@may_look
def test_it_says_so_when_the_request_only_waits(redis_server: RedisServer, queue: str) -> None:
    redis_server.client.xgroup_create(queue, queue, "0", mkstream=True)
    redis_server.client.xadd(queue, {"value": "{}"})
    process = start(redis_server, "send", "--queue", queue)
    assert process.stderr is not None
    assert "still waits, 2 requests" in process.stderr.readline()
    leave(process)


def test_without_notifications_it_polls(own_server: RedisServer, queue: str) -> None:
    own_server.client.config_set("notify-keyspace-events", "")
    gate = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        gate.wait(10)
        echo(consumer, request)

    served = Consumer(own_server, queue, script)
    try:
        process = start(own_server, "send", "--queue", queue, "-i", "a=b")
        wait_until(lambda: served.requests, "the request")
        gate.set()
        status, out, _ = finish(process)
        assert (status, json.loads(out)["output"]) == (0, {"a": "b"})
    finally:
        served.stop()


def lose_listener(server: RedisServer) -> None:
    """The connection of a producer that listens is lost, once it listens."""
    wait_until(lambda: server.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"), "somebody to listen")


def test_a_lost_connection_is_waited_out(own_server: RedisServer, queue: str) -> None:
    gate = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing")
        gate.wait(20)
        echo(consumer, request)

    served = Consumer(own_server, queue, script)
    try:
        process = start(own_server, "send", "--queue", queue, "-i", "a=b")
        wait_until(lambda: served.requests, "the request")
        assert process.stderr is not None
        lose_listener(own_server)
        assert "connection to Redis is lost" in process.stderr.readline()
        assert "answers again" in process.stderr.readline()
        gate.set()
        status, out, _ = finish(process)
        assert (status, json.loads(out)["output"]) == (0, {"a": "b"})
    finally:
        gate.set()
        served.stop()


def on_a_terminal(server: RedisServer, arguments: list[str], look: Callable[[str], object]) -> tuple[int, str]:
    """The exit status, and all that was written; `look` is given what there is so far, again and again."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cog_celery", *arguments],
        env=environment(server) | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=side,
        stderr=side,
    )
    os.close(side)
    screen = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(main, 65536)
        except OSError:  # how Linux says that the other side of a terminal is closed
            break
        screen += data
        look(screen.decode(errors="replace"))
    os.close(main)
    return process.wait(10), screen.decode()


def test_on_a_terminal_a_line_tells_status_progress_and_time(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    go_on = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing", None, [" 40%|####      | 4/10"])
        go_on.wait(10)
        consumer.set(request, "succeeded", "done", [" 40%|####      | 4/10"])

    consumer(script)
    status, text = on_a_terminal(
        redis_server, ["send", "--queue", queue], lambda screen: go_on.set() if "40 %" in screen else None
    )
    assert status == 0
    assert "40 %" in text and "Ctrl-C cancels" in text and "succeeded" in text and "output: " in text


def lines_of(*requests: object) -> str:
    return "".join(json.dumps(request) + "\n" for request in requests)


def test_a_file_of_requests_is_sent_and_every_response_is_a_line(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer], tmp_path: Path
) -> None:
    def script(consumer: Consumer, request: Request) -> None:
        consumer.set(request, "processing")
        consumer.set(request, "failed" if request["input"].get("n") == 2 else "succeeded", request["input"])

    served = consumer(script)
    file = tmp_path / "requests.jsonl"
    requests = [{"input": {"n": n}} for n in range(300)]
    file.write_text(lines_of({"input": {"both": "line"}, "id": "mine"}, *requests))
    status, out, err = finish(start(redis_server, "send", "--queue", queue, "--file", str(file), "-i", "both=typed"))
    assert (status, err.count("\n")) == (1, 1)
    assert "301 sent, 300 succeeded, 1 failed in " in err
    responses = {line["line"]: line for line in map(json.loads, out.splitlines())}
    assert len(responses) == out.count("\n") == 301
    assert responses[1]["id"] == "mine" and responses[1]["output"] == {"both": "line"}
    assert all(responses[n + 2]["output"] == {"both": "typed", "n": n} for n in range(300))
    assert responses[4]["status"] == "failed"
    for request in served.requests:
        assert 0 < redis_server.client.ttl(request["response_queue"]) <= 3600
        assert not redis_server.client.exists(request["cancel_key"])


def test_lines_that_are_no_requests_are_told_and_the_others_sent(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    consumer(echo)
    process = start(redis_server, "send", "--queue", queue, "--file", "-", "--output", "text", stdin=subprocess.PIPE)
    status, out, err = finish(process, '{"input": {"a": 1}}\n\n{"text": "x"}\nno JSON\n{"input": {"a": 2}}')
    assert status == 1
    assert sorted(re.sub(r"\(.*?\)", "()", line) for line in out.splitlines()) == [
        'line 1 () succeeded: {"a": 1}',
        'line 5 () succeeded: {"a": 2}',
    ]
    refused = [line for line in err.splitlines() if "is not sent" in line]
    assert [line.split(":")[1] for line in refused] == [" line 3 is not sent", " line 4 is not sent"]
    assert "2 sent, 2 succeeded, 2 lines refused" in err


def test_without_waiting_it_tells_the_keys(redis_server: RedisServer, queue: str) -> None:
    process = start(redis_server, "send", "--queue", queue, "--file", "-", "--no-wait", stdin=subprocess.PIPE)
    status, out, err = finish(process, lines_of({"input": {}, "id": None}, {"input": {}, "response_queue": "own"}))
    assert status == 0 and "2 sent in" in err
    told = [json.loads(line) for line in out.splitlines()]
    entries: Any = redis_server.client.xrange(queue)
    messages = [json.loads(fields["value"]) for _, fields in entries]
    assert [line["entry"] for line in told] == [entry for entry, _ in entries]
    for line, message in zip(told, messages, strict=True):
        assert {key: line[key] for key in ("id", "response_queue", "cancel_key")} == {
            key: message[key] for key in ("id", "response_queue", "cancel_key")
        }
    assert [line["response_queue"] == "own" for line in told] == [False, True]


@may_look
def test_ctrl_c_sends_no_more_and_cancels_what_is_on_its_way(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer]
) -> None:
    def script(consumer: Consumer, request: Request) -> None:
        if request["input"]:
            consumer.wait_for_cancel(request)
            consumer.set(request, "canceled")
        else:
            echo(consumer, request)

    served = consumer(script)
    process = start(redis_server, "send", "--queue", queue, "--file", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(lines_of({"input": {}}, {"input": {"wait": 1}}))
    process.stdin.flush()
    wait_until(lambda: len(served.requests) == 2, "the requests")
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["succeeded", "canceled"]
    assert "nothing more is sent" in err and re.search("canceling (1 prediction|2 predictions);", err)
    assert "2 sent, 1 succeeded, 1 canceled" in err and "the last line that was sent is 2" in err


@may_look
def test_requests_that_are_gone_are_not_waited_for(redis_server: RedisServer, queue: str) -> None:
    process = start(redis_server, "send", "--queue", queue, "--file", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(lines_of(*[{"input": {}}] * 20))
    process.stdin.close()
    process.stdin = None
    wait_until(lambda: redis_server.client.xlen(queue) == 20, "the requests")
    redis_server.client.delete(queue)
    status, out, err = finish(process)
    assert (status, out) == (1, "")
    assert err.count("has no response: it is gone") == 20 and "20 sent, 20 lost" in err


@may_look
def test_a_lost_connection_is_waited_out_for_a_file_as_well(own_server: RedisServer, queue: str) -> None:
    gate = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        gate.wait(20)
        echo(consumer, request)

    served = Consumer(own_server, queue, script)
    try:
        process = start(own_server, "send", "--queue", queue, "--file", "-", stdin=subprocess.PIPE)
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(lines_of(*[{"input": {}}] * 5))
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: own_server.client.xlen(queue) == 5, "the requests")
        lose_listener(own_server)
        assert "connection to Redis is lost" in process.stderr.readline()
        assert "answers again" in process.stderr.readline()
        gate.set()
        status, out, _ = finish(process)
        assert (status, out.count("succeeded")) == (0, 5)
    finally:
        gate.set()
        served.stop()


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[int] = []

    def refused(self, line: int, why: str) -> None:
        self.said.append(why)

    def sent(self, request: sending_many.Request) -> None:
        return None

    def ended(self, request: sending_many.Request, snapshot: object) -> None:
        self.done.append(request.line)

    def lost(self, request: sending_many.Request, why: str) -> None:
        self.said.append(why)

    def notice(self, text: str) -> None:
        self.said.append(text)

    def tick(self) -> None:
        return None


def test_requests_that_an_outage_may_have_taken_along_are_told_and_not_sent_again(
    own_server: RedisServer, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Consumer(own_server, queue, echo)
    execute = redis.client.Pipeline.execute
    batches = 0

    def broken(pipeline: Any, raise_on_error: bool = True) -> Any:
        nonlocal batches
        answers = execute(pipeline, raise_on_error)
        batches += not raise_on_error
        if batches == 3 and not raise_on_error:
            raise redis.ConnectionError
        return answers

    monkeypatch.setattr(redis.client.Pipeline, "execute", broken)
    (tmp_path / "file").write_text(lines_of(*[{"input": {}}] * 1000))
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    told = Told()
    plan = sending_many.Plan(sending_many.Lines(descriptor, 1000), queue, {}, 1000)
    try:
        with redis.Redis.from_url(own_server.url, protocol=2) as client:
            assert not sending_many.send_all(client, plan, told, lambda: 0)
    finally:
        served.stop()
        os.close(descriptor)
    assert sorted(told.done) == list(range(1, 201))
    assert "Lines 201 to 300 may be in the queue or not" in told.said[0]
    assert len(served.requests) >= 200 and own_server.client.xlen(queue) + len(served.requests) == 300


def test_on_a_terminal_a_bar_moves_and_what_fails_has_a_line(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer], tmp_path: Path
) -> None:
    go_on = threading.Event()

    def script(consumer: Consumer, request: Request) -> None:
        if request["input"] == {"n": 5}:
            go_on.wait(10)
        consumer.set(request, "succeeded" if request["input"]["n"] else "failed", error="over the cliff")

    consumer(script)
    file = tmp_path / "requests.jsonl"
    file.write_text(lines_of(*({"input": {"n": n}} for n in range(10))))
    status, screen = on_a_terminal(
        redis_server,
        ["send", "--queue", queue, "--file", str(file)],
        lambda screen: go_on.set() if "5/10" in screen else None,
    )
    assert status == 1
    assert "10 sent, 1 failed" in screen and "failed: over the cliff" in screen
    assert screen.count("succeeded") == 1  # in the sum


def test_a_large_file_is_put_to_the_input_upload_url_and_its_url_is_sent(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer], tmp_path: Path
) -> None:
    consumer(echo)
    large, small = tmp_path / "über.jpg", tmp_path / "small.txt"
    large.write_bytes(b"\xff" * 300_000)
    small.write_text("hello")
    with Web() as web, Web() as store:
        web.on("*", lambda handler: handler.answer(307, Location=store.url + handler.path + "?signature=secret"))
        store.on("*", reply(200))
        arguments = ["send", "--queue", queue, "-i", f"image=@{large}", "-i", f"text=@{small}"]
        status, out, err = finish(start(redis_server, *arguments, "--input-upload-url", web.url + "/up"))
        assert (status, err) == (0, "")
        [put] = store.seen
        assert (put.method, put.length, put.headers["Content-Type"]) == ("PUT", 300_000, "image/jpeg")
        assert re.fullmatch(r"/up/[0-9a-f]{32}/%C3%BCber.jpg\?signature=secret", put.target)
        output = json.loads(out)["output"]
        assert output == {
            "image": (store.url + put.target).partition("?")[0],
            "text": "data:text/plain;base64,aGVsbG8=",
        }

        store.on("*", reply(403))
        status, out, err = finish(start(redis_server, *arguments, "--input-upload-url", web.url + "/up"))
        assert (status, out) == (1, "")
        assert err.startswith(f"cog-celery: {large}: ") and "403" in err and "secret" not in err

    status, out, err = finish(start(redis_server, *arguments, env={"COG_CELERY_MAX_REQUEST_BYTES": "100000"}))
    assert (status, out) == (2, "")
    assert str(large) in err and "--input-upload-url" in err


def test_a_large_file_for_a_bucket_is_sent_as_a_presigned_url(
    redis_server: RedisServer, queue: str, consumer: Callable[[Script], Consumer], tmp_path: Path
) -> None:
    consumer(echo)
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(300_000))
    folder = tmp_path / "s3"
    folder.mkdir()
    server = Rclone(folder)
    try:
        arguments = ["send", "--queue", queue, "-i", f"file=@{large}", "--input-upload-url", f"s3://{BUCKET}/in"]
        status, out, err = finish(start(redis_server, *arguments, env=server.env))
        assert (status, err) == (0, "")
        url = json.loads(out)["output"]["file"]
        [key] = server.objects()
        assert re.fullmatch("in/[0-9a-f]{32}/large.bin", key) and key in url
        with urlopen(url, timeout=10) as answer:
            assert answer.read() == large.read_bytes()

        wrong = server.env | {"AWS_SECRET_ACCESS_KEY": "canary"}
        status, out, err = finish(start(redis_server, *arguments, env=wrong))
        assert (status, out) == (1, "")
        assert f"{large}: the file large.bin could not be uploaded to s3://{BUCKET}/in/" in err and "canary" not in err
    finally:
        server.stop()


def sent(server: RedisServer, queue: str, **fields: Any) -> str:
    return str(server.client.xadd(queue, {"value": json.dumps({"input": {}, "response_queue": "r", **fields})}))


@pytest.mark.parametrize("by", ["id", "entry"])
def test_cancel_finds_a_request_among_many(redis_server: RedisServer, queue: str, by: str) -> None:
    redis_server.client.xadd(queue, {"value": "no JSON"})
    redis_server.client.xadd(queue, {"other": "field"})
    for number in range(120):
        sent(redis_server, queue, id=f"p{number}", cancel_key=f"{queue}-c{number}")
    entry = sent(redis_server, queue, id="wanted", cancel_key=f"{queue}-wanted")
    status, out, err = finish(start(redis_server, "cancel", "wanted" if by == "id" else entry, "--queue", queue))
    assert (status, out) == (0, "")
    assert "is being canceled" in err
    assert redis_server.client.ttl(f"{queue}-wanted") > 3600
    assert not redis_server.client.exists(f"{queue}-c0")


def test_cancel_says_when_there_is_no_such_request_or_no_cancel_key(redis_server: RedisServer, queue: str) -> None:
    sent(redis_server, queue, id="keyless")
    for prediction, why in (
        ("missing", "has no request missing"),
        ("1-1", "has no request"),
        ("keyless", "cancel_key"),
    ):
        status, _, err = finish(start(redis_server, "cancel", prediction, "--queue", queue))
        assert status == 1
        assert why in err and err.count("\n") == 1


def test_an_unreachable_server_is_one_line_without_its_password(redis_server: RedisServer, queue: str) -> None:
    url = "redis://:hunter2@127.0.0.1:1/0"
    status, out, err = finish(start(redis_server, "send", "--queue", queue, "--redis-url", url))
    assert (status, out) == (1, "")
    assert "cannot be reached" in err and "hunter2" not in err and err.count("\n") == 1
