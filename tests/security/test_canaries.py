"""Secrets of producers and of operators, at the most talkative level, in good times and in bad: what is written, sent
or shown by all that looks at a fleet has none of them in it.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import fleets_on, recording
from tests.support.fleet import Fleet
from tests.support.monitor import Command, Monitor
from tests.support.otlp import Collector, collector
from tests.support.producer import Request
from tests.support.servers import RedisServer, free_port
from tests.support.web import Web, closed_port, reply

pytestmark = pytest.mark.ours

PLACES = (
    *("input", "context", "input-user", "input-query", "fragment", "upload-user", "upload-query", "presigned-query"),
    *("webhook-query", "report-query", "redis-password", "otel-header", "otel-query", "variable", "wrong-input"),
)
CANARIES = {place: f"canary-{place}-7d1c9e" for place in PLACES}


class Cage:
    """A fleet full of secrets, whose every word is kept: what it logs, serves, sends and leaves behind."""

    def __init__(self, server: RedisServer, fleet: Fleet, got: Collector, web: Web, monitor: Monitor) -> None:
        self.server, self.fleet, self.got, self.web, self.monitor = server, fleet, got, web, monitor
        self.password = CANARIES["redis-password"]
        self.url = f"redis://someone:{self.password}@127.0.0.1:{server.port}/0"
        user = server.client.acl_setuser
        user("someone", enabled=True, passwords=[f"+{self.password}"], keys="*", channels="*", commands=["+@all"])
        self.ports = free_port(), free_port()
        self.env = {
            "REDIS_URL": self.url,
            "OTEL_SERVICE_NAME": "x",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{got.http}/?sig={CANARIES['otel-query']}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {CANARIES['otel-header']}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "AWS_SECRET_ACCESS_KEY": CANARIES["variable"],
            "SOME_TOKEN": CANARIES["variable"],
        }
        fleet.start_bridge(env=self.env, metrics_port=self.ports[0])
        fleet.start_worker(env=self.env, metrics_port=self.ports[1])
        fleet.wait_ready()
        self.shown: dict[str, str] = {}
        """What was shown, by what it is."""
        self.requests: dict[str, Request] = {}

    def send(self, what: str, input: dict[str, Any], **fields: Any) -> Request:
        given = {"text": CANARIES["input"], **input}
        fields = {"context": {"token": CANARIES["context"]}, "idle": CANARIES["input"], **fields}
        request = self.requests[what] = self.fleet.producer.send(given, **fields)
        return request

    def predict(self, what: str, input: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return self.fleet.producer.wait(self.send(what, input, **fields))

    def file(self, path: str, netloc: str = "") -> str:
        """A URL with a secret in each of its parts that may have one."""
        user, query, fragment = (CANARIES[place] for place in ("input-user", "input-query", "fragment"))
        return f"http://{user}:{user}@{netloc or self.web.netloc}{path}?sig={query}#{fragment}"

    def show(self, *commands: tuple[str, ...], url: str = "") -> None:
        """Keep what commands print, with everything they can say of themselves."""
        env = self.fleet.environment({"log_level": "debug"}) | self.env | ({"REDIS_URL": url} if url else {})
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        started = [
            subprocess.Popen([sys.executable, "-m", "cog_celery", *one], env=env, stdout=pipe, stderr=both, text=True)
            for one in commands
        ]
        for one, process in zip(commands, started, strict=True):
            self.shown[f"cog-celery {' '.join(one)} {len(self.shown)}"] = process.communicate(timeout=30)[0]

    def look(self, what: str) -> None:
        """Keep what can be seen at this moment."""
        for port in self.ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                self.shown[f"{what}: metrics {port}"] = answer.read().decode()
        for process in self.fleet.processes():
            comm = Path("/proc", str(process.pid), "comm")
            self.shown[f"{what}: {process.pid}"] = process.command + (comm.read_text() if comm.exists() else "")
        for path in self.fleet.folder.rglob("*"):
            self.shown[f"{what}: name {path}"] = str(path)
            if path.is_file():
                self.shown[f"{what}: {path}"] = path.read_text(errors="replace")
        self.shown |= {f"{what}: key {key}": text for key, text in self.keys()}

    def keys(self) -> Iterator[tuple[str, str]]:
        """What stands in Redis, but for what producers have put there, and the responses to them."""
        theirs = {self.fleet.queue, f"{self.fleet.queue}-dead"}
        theirs |= {request.response_queue for request in self.requests.values()}
        with redis.Redis(port=self.server.port, protocol=2) as client:  # bytes
            for key in client.scan_iter("*", count=1000):
                if key.decode(errors="replace") not in theirs:
                    yield key.decode(errors="replace"), repr((key, client.dump(key), content(client, key)))


def content(client: redis.Redis, key: bytes) -> Any:
    """As text in clear: a dump may be compressed."""
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"hash":
            return client.hgetall(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1)
        case b"stream":
            return client.xrange(key)
    return None


def said(command: Command) -> bytes:
    """All arguments, and the bodies of Celery's messages, which are base64."""
    text = b" ".join(command.args)
    bodies = re.findall(rb'"body": ?"([A-Za-z0-9+/=]*)"', text)
    return b" ".join([text, *map(base64.b64decode, bodies)])


@pytest.fixture(scope="module")
def cage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cage]:
    folder = tmp_path_factory.mktemp("cage")
    server = RedisServer("valkey", tmp_path_factory.mktemp("valkey"))
    try:
        with collector() as got, Web() as web, recording(server) as monitor, fleets_on(server, folder) as make:
            web.on("*", reply(200, b"a file"))
            user, query = CANARIES["upload-user"], CANARIES["upload-query"]
            upload_url = f"http://{user}:{user}@{web.netloc}/in?sig={query}"
            report = f"{web.url}/report?sig={CANARIES['report-query']}"
            options: dict[str, Any] = {"lease": 1, "slots": 3, "log_level": "debug"}
            options |= {"upload_url": upload_url, "report_setup_run_url": report, "input_cache": str(folder / "cache")}
            model = folder.parent / "reader"
            model.mkdir(exist_ok=True)
            (model / "cog.yaml").write_text("predict: predict.py:Predictor\n")
            (model / "predict.py").write_text(MODEL)
            fleet = make(model, start=False, log_format="json", **options)
            yield Cage(server, fleet, got, web, monitor)
    finally:
        server.stop()


MODEL = """
import os, tempfile, time
from typing import Optional
from cog import BasePredictor, Path

class Predictor(BasePredictor):
    def predict(
        self, text: str, how: str = "", file: Optional[Path] = None, count: int = 1, seconds: float = 0
    ) -> Path:
        print("a line")
        time.sleep(seconds)
        if how == "fails":
            raise ValueError("no good")
        if how == "dies":
            os.abort()
        path = os.path.join(tempfile.mkdtemp(), "out.txt")
        with open(path, "w") as out:
            out.write("an output")
        return Path(path)
"""
"""It tells nothing of what it is given: what a model prints is its own affair."""


def test_nothing_that_is_written_sent_or_shown_has_a_secret_in_it(cage: Cage) -> None:
    fleet, web, missing = cage.fleet, cage.web, closed_port()
    presigned = f"/presigned?sig={CANARIES['presigned-query']}"
    webhook = f"{web.url}/hook?sig={CANARIES['webhook-query']}"

    # In good times: files in, from the cache and out, with every field that a request may have.
    web.on("/big.bin", reply(200, b"x" * 100_000, ETag='"1"'))
    good: dict[str, dict[str, Any]] = {
        "a file": {"webhook": webhook},
        "the same": {"webhook": None},
        "presigned": {"output_upload_urls": [web.url + presigned]},
    }
    for what, fields in good.items():
        assert cage.predict(what, {"file": cage.file("/big.bin")}, **fields)["status"] == "succeeded", what
    running = cage.send("running", {"seconds": 30, "file": cage.file("/a.txt")})
    fleet.producer.wait_for(running, lambda response: response["logs"])
    cage.look("while it runs")
    there = ("--queue", fleet.queue)
    cage.show(("status", *there), ("status", *there, "--output", "text"), ("status", running.id, *there))
    assert all(fleet.queue in shown for what, shown in cage.shown.items() if what.startswith("cog-celery"))
    fleet.producer.cancel(running)

    # In bad ones: each way to fail, servers that refuse or are not there, and a break of all connections.
    web.on("/refused.txt", reply(403))
    bad: dict[str, dict[str, Any]] = {
        "fails": {"how": "fails"},
        "dies": {"how": "dies"},
        "refused input": {"count": CANARIES["wrong-input"]},
        "file refused": {"file": cage.file("/refused.txt")},
        "file from nobody": {"file": cage.file("/a.txt", missing)},
        "file from where none may be": {"file": cage.file("/a.txt", "169.254.169.254")},
        "no file": {"file": f"ftp://{CANARIES['input-user']}@x/{CANARIES['input-query']}"},
    }
    for what, input in bad.items():
        cage.send(what, input)
    cage.send("upload to nobody", {}, output_upload_urls=[f"http://{missing}{presigned}"])
    cage.send("upload refused", {}, output_upload_urls=[f"{web.url}/refused.txt?sig={CANARIES['presigned-query']}"])
    for what in (*bad, "upload to nobody", "upload refused"):
        assert fleet.producer.wait(cage.requests[what])["status"] == "failed", what
    fleet.producer.send_raw(f'{{"input": {{"text": "{CANARIES["input"]}"}}, "webhook": "{webhook}"}}')
    fleet.producer.send_raw(f"no JSON {CANARIES['input']}")
    cage.got.reply = lambda number: 503
    cage.server.client.client_kill_filter(_type="normal", skipme=True)
    assert cage.predict("after a break", {})["status"] == "succeeded"
    fleet.wait_idle()
    cage.look("afterwards")
    cage.show(
        *(("status", cage.requests[what].id, *there, "--output", "text") for what in ("upload refused", "running")),
        ("dead", "list", *there, "--output", "text"),
        ("check",),
    )
    cage.show(("status", "x"), url=f"redis://someone:{cage.password}@{missing}/0")
    cage.show(("status",), url=cage.url.replace(cage.password, f"{cage.password}x"))
    fleet.stop()

    broker = [one for one in map(said, cage.monitor.commands()) if b"cog-celery:broker:" in one]
    assert any(running.id.encode() in one for one in broker) and len(cage.got.bodies) > 5
    assert {"redis_queue.fetch", "redis_queue.upload"} <= {span.name for span in cage.got.spans}
    cage.shown["broker"] = b"\n".join(broker).decode(errors="replace")
    cage.shown["traces"] = b"\n".join(cage.got.bodies).decode(errors="replace")
    cage.shown |= {f"log of {child.name}": child.text() for child in fleet.children}
    for request in cage.requests.values():
        cage.shown[f"error of {request.id}"] = str((fleet.producer.get(request) or {}).get("error"))
    for seen in web.seen:
        # A server gets what its own URL has: that it is asked for, and credentials in a header of theirs.
        headers = {name: value for name, value in seen.headers.items() if name != "Authorization"}
        cage.shown[f"sent to {seen.target.partition('?')[0]}"] = repr((headers, seen.body))
    assert "sent to /report" in cage.shown and "sent to /in/out.txt" in cage.shown

    found = [
        f"{place} in {what}: {around(text, canary)}"
        for what, text in cage.shown.items()
        for place, canary in CANARIES.items()
        if canary in text
    ]
    assert not found, "\n".join(found)
    log = fleet.workers[0].text()
    assert '"level":"debug"' in log and all(request.id in log for request in cage.requests.values())


def around(text: str, canary: str) -> str:
    at = text.index(canary)
    return text[max(0, at - 200) : at + 200]
