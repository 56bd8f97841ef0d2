"""Runs bridges and workers as the processes a user would start, on a queue of their own, and takes them down again.

It must not know what is in them: it speaks command lines, variables, signals, and the keys that they are known by.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import redis

from tests.support.processes import MARK, Child, Process, family, marked, wait_until
from tests.support.producer import Producer
from tests.support.servers import Server, as_user

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "models"
PEER = os.environ.get("COG_PEER_PYTHON")
"""An interpreter with `cog` in it: then Cog's own queue worker consumes, to see what its consumers see."""

ROLES = {"bridge": "bridge", "worker": "worker", "send": "producer", "status": "monitor"}
"""Which user of Redis a command is, where tests run under access rules; all others operate."""

Option = str | int | float | bool | Sequence[str]


def variables(options: dict[str, Option]) -> dict[str, str]:
    """`predict_timeout=2` → `COG_CELERY_PREDICT_TIMEOUT=2`; sequences are joined by commas."""
    out: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            text = str(value)
        else:
            text = ",".join(value)
        out[f"COG_CELERY_{name.upper()}"] = text
    return out


class Fleet:
    """Processes of one queue. All of them, and all that their models start, carry one mark.

    `options` are settings, given to every process by its variable. `shape` says what to start:
    `split` (bridges and workers apart), `run` (`cog-celery run`), `dropin` (`python -m cog_celery.redis_queue`).
    """

    def __init__(
        self,
        server: Server,
        folder: Path,
        model: str | Path,
        *,
        shape: str = "split",
        queue: str | None = None,
        bridges: int = 1,
        workers: int = 1,
        slots: int = 1,
        gpus: str | None = None,
        env: dict[str, str] | None = None,
        **options: Option,
    ) -> None:
        self.server = server
        self.client: redis.Redis = server.client
        self.folder = folder
        self.model = model if isinstance(model, Path) else MODELS / model
        self.shape = "peer" if PEER else shape
        self.queue = queue or f"q-{uuid.uuid4().hex[:12]}"
        self.mark = uuid.uuid4().hex
        self.slots = len(gpus.split(",")) if gpus else slots
        # Servers of files that tests start are on this machine.
        self.options: dict[str, Option] = {"allow_addresses": "127.0.0.0/8", "log_format": "text", **options}
        if gpus:
            self.options["gpus"] = gpus
        elif slots != 1:
            self.options["slots"] = slots
        self.env = env or {}
        self.plan = (bridges, workers)
        self._sender: redis.Redis | None = None
        if (url := as_user("producer", server.url)) != server.url:
            own = self.client.connection_pool.connection_kwargs
            if "port" in own:  # past a proxy, as `client`
                url = as_user("producer", f"redis://{own['host']}:{own['port']}{urlsplit(server.url).path}")
            self._sender = redis.Redis.from_url(url, decode_responses=True, protocol=2)
        self.producer = Producer(self._sender or self.client, self.queue)
        self.children: list[Child] = []
        self.bridges: list[Child] = []
        self.workers: list[Child] = []
        self.discarded = False
        self._stopping: list[Child] = []
        self._seen: set[Process] = set()

    # Starting

    def environment(
        self, options: Mapping[str, Option], own: Mapping[str, str] | None = None, role: str = "admin"
    ) -> dict[str, str]:
        """The variables of a child: this fleet's settings, and `options` over them; `own`: variables of its own, which
        its model does not get; `role`: whom Redis knows it as.
        """
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COG_", "REDIS_URL", "OTEL_", "TEST_"))
        }
        if not PEER:
            # The folder of the project, for the test run may not have it installed.
            env["PYTHONPATH"] = str(ROOT)
            model_env = [MARK, *self.env]
            env |= variables({**self.options, **options, "model_env": model_env})
            env["REDIS_URL"] = as_user(role, self.server.url)
            if broker := env.get("COG_CELERY_BROKER_URL"):
                env["COG_CELERY_BROKER_URL"] = as_user(role, broker)
            env["TMPDIR"] = str(self.folder)
        return {**env, **self.env, **(own or {}), MARK: self.mark}

    def start(self) -> Fleet:
        """Start all that is planned and wait until every slot is idle."""
        bridges, workers = self.plan
        if self.shape == "split":
            for _ in range(bridges):
                self.start_bridge()
            for _ in range(workers):
                self.start_worker()
        elif self.shape == "run":
            self.start_command("run", "run", str(self.model), "--queue", self.queue)
        elif self.shape == "dropin":
            self.start_dropin()
        else:
            for _ in range(workers):
                self.start_peer()
        self.wait_ready()
        return self

    def start_command(
        self,
        what: str,
        /,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
        **options: Option,
    ) -> Child:
        """`python -m cog_celery …` with this fleet's variables, and `env` over them, behind the words `through`."""
        command = [*through, sys.executable, "-m", "cog_celery", *arguments]
        return self.start_child(what, command, options=options, env=env, role=ROLES.get(arguments[0], "admin"))

    def start_child(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        options: Mapping[str, Option] | None = None,
        env: Mapping[str, str] | None = None,
        role: str = "admin",
    ) -> Child:
        """Any process, with this fleet's variables and mark, and `env` over them."""
        number = len(self.children)
        log = self.folder / f"{self.queue}-{number}-{name}.log"
        child = Child(f"{name} {number}", command, log=log, cwd=cwd, env=self.environment(options or {}, env, role))
        self.children.append(child)
        return child

    def start_bridge(
        self, *, env: Mapping[str, str] | None = None, through: Sequence[str] = (), **options: Option
    ) -> Child:
        child = self.start_command("bridge", "bridge", "--queue", self.queue, env=env, through=through, **options)
        self.bridges.append(child)
        return child

    def start_worker(
        self, *, env: Mapping[str, str] | None = None, through: Sequence[str] = (), **options: Option
    ) -> Child:
        options.setdefault("name", f"w{len(self.workers)}-{self.queue}")
        command = ("worker", str(self.model), "--queue", self.queue)
        child = self.start_command("worker", *command, env=env, through=through, **options)
        self.workers.append(child)
        return child

    def start_dropin(self, *arguments: str, upload_url: str = "", log_queue: str = "") -> Child:
        """The drop-in in its model's folder, with Cog's positional arguments; `arguments` follow them."""
        module = "cog_celery.redis_queue"
        words = self.positional(upload_url=upload_url, log_queue=log_queue)
        child = self.start_child("dropin", [sys.executable, "-m", module, *words, *arguments], cwd=self.model)
        self.workers.append(child)
        return child

    def start_peer(self) -> Child:
        assert PEER
        with suppress(redis.ResponseError):
            self.client.xgroup_create(self.queue, self.queue, id="0", mkstream=True)
        upload_url = str(self.options.get("upload_url", ""))
        words = self.positional(upload_url=upload_url, log_queue="")
        if "predict_timeout" in self.options:
            words.append(str(self.options["predict_timeout"]))
        child = self.start_child("peer", [PEER, "-m", "cog.server.redis_queue", *words], cwd=self.model)
        self.workers.append(child)
        return child

    def positional(self, *, upload_url: str, log_queue: str) -> list[str]:
        """redis_host redis_port input_queue upload_url consumer_id model_id log_queue"""
        consumer = f"consumer-{len(self.workers)}"
        return ["127.0.0.1", str(self.server.port), self.queue, upload_url, consumer, "model-id", log_queue]

    # Waiting

    def announced(self) -> int:
        """How many workers of this queue have announced themselves."""
        return len(list(self.client.scan_iter(f"cog-celery:{self.queue}:worker:*", count=1000)))

    def credits(self) -> int:
        """How many slots of this queue are idle."""
        return int(self.client.llen(f"cog-celery:{self.queue}:credits"))

    def wait_ready(self, workers: int | None = None, *, timeout: float = 30.0) -> None:
        """Wait until `workers` workers (all by default) are up and all of their slots idle."""
        count = self.plan[1] if workers is None else workers

        def ready() -> bool:
            for child in self.children:
                child.check_running()
            if PEER:
                return all("Waiting for message" in worker.text() for worker in self.workers)
            return self.announced() == count and self.credits() >= count * self.slots

        wait_until(ready, f"{count} workers to be ready", timeout, interval=0.02)

    def wait_idle(self, *, timeout: float = 15.0) -> None:
        """Wait until nothing is queued or pending."""
        wait_until(
            lambda: self.depth() == 0 and self.pending() == 0, f"queue {self.queue} to be empty", timeout, interval=0.02
        )

    # Looking

    def depth(self) -> int:
        """XLEN: what waits and what runs."""
        return int(self.client.xlen(self.queue))

    def pending(self) -> int:
        """XPENDING: what runs."""
        return int(self.client.xpending(self.queue, self.queue)["pending"])

    def processes(self) -> set[Process]:
        """Every live process of this fleet: what it started, what these started, and all that a model started.

        Whatever was seen once is looked for again, wherever it went since.
        """
        self._seen |= marked(self.mark) | family(child.pid for child in self.children if child.running)
        self._seen = {process for process in self._seen if process.alive}
        return self._seen

    def runners(self) -> list[Process]:
        """The processes that the model runs in."""
        return [process for process in self.processes() if "_runner/__main__.py" in process.command]

    def log(self, last: int = 1_000_000) -> str:
        """What the processes wrote, the last `last` characters of each."""
        return "\n".join(
            f"--- {child.name} (pid {child.pid}, exit status {child.process.poll()})\n{child.text()[-last:]}"
            for child in self.children
        )

    # Stopping

    def terminate(self) -> None:
        """SIGTERM, once, to all that still runs. One that is still starting would end by it and say nothing of how."""
        self.processes()
        for child in self.children:
            if child.running and child not in self._stopping:
                child.wait_up()
                child.terminate()
                self._stopping.append(child)

    def stop(self, *, timeout: float = 20.0) -> None:
        """SIGTERM to all that still runs. Every exit status must be 0, and no process be left."""
        self.terminate()
        statuses = {child.name: child.wait(timeout) for child in self._stopping}
        assert not any(statuses.values()), f"exit statuses after SIGTERM: {statuses}"
        self.check_nothing_left()

    def check_nothing_left(self, *, but: Iterable[Child] = (), timeout: float = 3.0) -> None:
        """AssertionError unless every process of this fleet ends within `timeout` seconds, but these with theirs."""
        spared = family(child.pid for child in but)
        deadline = time.monotonic() + timeout
        while left := self.processes() - spared:
            assert time.monotonic() < deadline, f"left of {self.queue} after {timeout:g} s: {left}"
            time.sleep(0.02)

    def discard(self) -> None:
        """End everything, without judging."""
        self.discarded = True
        self.processes()
        for child in self.children:
            child.discard()
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if self._sender is not None:
            self._sender.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self.discard()
