"""What producers and others do to the queue: bad messages, cancels, deleted entries, a consumer that is not ours.

It must not know how any of it is answered.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from bench import peers
from tests.soak.scene import Scene, Sent
from tests.soak.trial import Trial
from tests.support.processes import Child, wait_until

AT_ONCE = 4
"""Predictions that run while some of their entries are deleted."""
MANY = 100
"""Cancels of which some must win and some must lose."""
PEER = "0.6.1"


def deleted(trial: Trial) -> None:
    for lease, times in trial.leases(20):
        for how in ("deleted", "trimmed"):
            _deleted(trial, lease, times, how)


def _deleted(trial: Trial, lease: float, times: int, how: str) -> None:
    fault = "an entry is deleted while it runs" if how == "deleted" else "the stream is trimmed while predictions run"
    with trial.scene(lease=lease, slots=AT_ONCE) as scene:
        row = trial.row(fault, "each such request ends canceled, the rest untouched", "times", lease)
        took = []
        for n in range(times):
            trial.progress(n, times)
            wait_until(lambda: scene.fleet.credits() >= AT_ONCE, "all slots to be idle", 30)
            # The rest runs on for longer than it takes to notice.
            running = [scene.send({"action": "SLEEP", "seconds": lease / 3 + 1.5}) for _ in range(AT_ONCE)]
            for one in running:
                scene.journal.wait_start(one.mark)
            waiting = [scene.send({"action": "OK"}) for _ in range(2)]
            at = time.time()
            if how == "deleted":
                gone = trial.rng.sample(running, trial.rng.randint(1, AT_ONCE))
                scene.client.xdel(scene.fleet.queue, *(one.request.entry for one in gone))
            else:
                kept = trial.rng.randint(0, AT_ONCE - 1)
                gone = running[: AT_ONCE - kept]
                scene.client.xtrim(scene.fleet.queue, maxlen=kept + len(waiting), approximate=False)
            statuses = scene.settle(gone, lease + 10)
            took.append(time.time() - at)
            statuses |= scene.settle([*running, *waiting], lease + 20)
            expected = {one.mark: "canceled" if one in gone else "succeeded" for one in [*running, *waiting]}
            row.check(statuses == expected, f"{statuses} instead of {expected}")
        row.worst("canceled after", took)
        scene.judge(row)


def cancel_race(trial: Trial) -> None:
    times = trial.times(1000)
    with trial.scene(workers=2, slots=4) as scene:
        row = trial.row("cancel racing completion", "one terminal each, succeeded or canceled", "cancels")
        # Some are over before their cancel key is looked at, some long after.
        load = scene.load(times, 18, lambda rng: {"action": "SLEEP", "seconds": rng.choice((0, rng.uniform(0.2, 0.6)))})
        done = threading.Event()

        def cancel() -> None:
            seen = 0
            rng = random.Random(trial.rng.random())
            while not done.is_set():
                sent = load.sent[seen:]
                seen += len(sent)
                for one in sent:
                    wait = one.at + rng.uniform(0, 0.5) - time.time()
                    threading.Timer(max(0.0, wait), scene.cancel, (one,)).start()
                done.wait(0.02)

        canceler = threading.Thread(target=cancel)
        canceler.start()
        try:
            sent = _watched(trial, scene, load.finish, times)
            time.sleep(0.6)
        finally:
            done.set()
            canceler.join()
        statuses = scene.settle(sent, 20)
        for one in sent:
            status = statuses[one.mark]
            row.check(status in ("succeeded", "canceled"), f"{one.mark} ended {status or 'never'}")
        counts = Counter(statuses.values())
        for status in ("succeeded", "canceled"):
            row.tell(status, counts[status])
            if not counts[status] and len(sent) >= MANY:
                row.problems.append(f"none was {status}: the race was none")
        scene.judge(row)


def _watched(trial: Trial, scene: Scene, finish: Any, times: int) -> list[Sent]:
    """The load, when it has sent all, with progress."""
    while len(scene.loads[-1].sent) < times:
        trial.progress(len(scene.loads[-1].sent), times)
        time.sleep(0.1)
    sent: list[Sent] = finish()
    return sent


def bad_messages(trial: Trial) -> None:
    times = trial.times(1000)
    limit = 100_000
    with trial.scene(slots=2, max_request_bytes=limit) as scene:
        row = trial.row(
            f"{times:,} bad messages among {times:,} good",
            "every bad one answered or dead-lettered, every good one succeeds, no restart",
            "messages",
        )
        runners = {process.pid for process in scene.fleet.runners()}
        good: list[Sent] = []
        bad: dict[str, tuple[str, str]] = {}
        kinds = list(_bad(scene.fleet.queue, limit))
        order = [True] * times + [False] * times
        trial.rng.shuffle(order)
        for n, is_good in enumerate(order):
            trial.progress(n, len(order))
            if is_good:
                good.append(scene.send({"action": "OK"}))
                continue
            kind, response, fields = _one_bad(kinds[len(bad) % len(kinds)], len(bad), scene.fleet.queue)
            bad[scene.send_bad(fields)] = (kind, response)
        statuses = scene.settle(good, 30)
        for one in good:
            row.check(statuses[one.mark] == "succeeded", f"a good one, {one.mark}, ended {statuses[one.mark]}")
        scene.fleet.wait_idle(timeout=30)
        buried = _buried(scene)
        answered = 0
        for entry, (kind, response) in bad.items():
            text: Any = scene.client.get(response)
            failed = text is not None and json.loads(text)["status"] == "failed"
            answered += failed
            row.check(failed or entry in buried, f"{kind}: no answer and no dead letter, but {text!r}")
        row.tell("answered", answered)
        row.tell("dead letters", len(buried))
        for child in scene.fleet.children:
            child.check_running()
        if {process.pid for process in scene.fleet.runners()} != runners:
            row.problems.append("a runner was started again")
        scene.judge(row)


def _buried(scene: Scene) -> set[str]:
    """The entries that lie among the dead letters, whose own fields are as they were sent: bytes."""
    with redis.Redis(port=scene.server.port) as client:
        letters: Any = client.xrange(f"{scene.fleet.queue}-dead")
        return {fields[b"entry"].decode() for _, fields in letters}


def _bad(queue: str, limit: int) -> list[tuple[str, Any]]:
    """Kinds of bad messages: a name, and the value (or the whole entry) with `@` where a response key may be named."""
    input = {"action": "OK"}
    fine = {"id": "i", "input": input, "response_queue": "@"}

    def but(**fields: Any) -> str:
        return json.dumps({**fine, **fields})

    nested = "[" * 2000 + "]" * 2000
    return [
        ("no value", {"other": "1"}),
        ("empty", ""),
        ("not JSON", "{"),
        ("not an object", "[1, 2]"),
        ("not UTF-8", b'{"input": {"action": "OK", "text": "\xff\xfe"}, "response_queue": "@"}'),
        ("NaN", '{"input": {"action": "OK", "seconds": NaN}, "response_queue": "@"}'),
        ("too deep", '{"input": {"action": "OK", "x": ' + nested + '}, "response_queue": "@"}'),
        ("too large", but(input={**input, "text": "x" * limit})),
        ("no response_queue", json.dumps({"input": input})),
        ("the stream as response_queue", but(response_queue=queue)),
        ("our credits as response_queue", but(response_queue=f"cog-celery:{queue}:credits")),
        ("a number as response_queue", but(response_queue=1)),
        ("the dead letters as cancel_key", but(cancel_key=f"{queue}-dead")),
        ("no input", json.dumps({"id": "i", "response_queue": "@"})),
        ("an input that is none", but(input="hello")),
        ("an input of the wrong type", but(input={**input, "seconds": "soon"})),
        ("an input out of its range", but(input={**input, "seconds": -1})),
        ("no such choice", but(input={"action": "DANCE"})),
        ("a required input that is missing", but(input={})),
    ]


def _one_bad(kind: tuple[str, Any], number: int, queue: str) -> tuple[str, str, dict[Any, Any]]:
    """A name, the response key, and the entry's fields."""
    name, value = kind
    response = f"{queue}-bad.{number}"
    if isinstance(value, dict):
        return name, response, value
    whole = (
        value.replace(b"@", response.encode()) if isinstance(value, bytes) else value.replace('"@"', f'"{response}"')
    )
    return name, response, {"value": whole}


def foreign(trial: Trial) -> None:
    python = trial.asked.peer or peers.interpreter(PEER, trial.asked.cache, trial.say)
    for lease, times in trial.leases(20):
        with trial.scene(lease=lease) as scene:
            row = trial.row(
                f"a Cog {PEER} worker in the same group", "never robbed of what it runs", "of its predictions", lease
            )
            peer = _start_peer(scene, python)
            theirs: list[Sent] = []
            while len(theirs) < times:
                trial.progress(len(theirs), times)
                theirs += _beside_a_peer(scene, lease)
            for one in theirs:
                starts = len(scene.journal.starts(one.mark))
                row.check(starts == 1, f"{one.mark} was run {starts} times")
            # It does not stop as ours do, and is not judged.
            peer.discard()
            scene.judge(row)


def _start_peer(scene: Scene, python: Path) -> Child:
    fleet = scene.fleet
    words = ["127.0.0.1", str(scene.server.port), fleet.queue, "", "peer", "model-id", f"{fleet.queue}-log"]
    peer = fleet.start_child("peer", [str(python), "-m", "cog.server.redis_queue", *words], cwd=fleet.model)

    def ready() -> bool:
        peer.check_running()
        return "Waiting for message" in peer.text()

    wait_until(ready, "the peer to be ready", 60)
    return peer


def _beside_a_peer(scene: Scene, lease: float) -> list[Sent]:
    """Two predictions of several leases, one on each side; the one that ran at the peer's."""
    wait_until(lambda: scene.fleet.credits() >= 1, "our slot to be idle", 30)
    pair = [scene.send({"action": "SLEEP", "seconds": 2.2 * lease}) for _ in range(2)]
    wait_until(lambda: scene.fleet.pending() == 2, "both to run")
    pending = scene.client.xpending_range(scene.fleet.queue, scene.fleet.queue, "-", "+", 10)
    entries = {line["message_id"] for line in pending if line["consumer"] == "peer"}
    statuses = scene.settle(pair, 3 * lease + 20)
    assert set(statuses.values()) == {"succeeded"}, statuses
    return [one for one in pair if one.request.entry in entries]
