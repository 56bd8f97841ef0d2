"""Runs predictors, each in a fork of one interpreter that has imported the runner: `driver.py <runtime> <scratch>`.

It must not know what is expected of them. Standard input has a JSON list of cases, standard output one result a line;
the fork runs the runner's own main(), and is spoken to over pipes as a slot does.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import time
from typing import Any

PATIENCE = 20.0


class Runner:
    """A fork that serves one predictor; what it wrote is in `log` once it has ended."""

    def __init__(self, environment: dict[str, str], folder: str) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        log = os.open(os.path.join(folder, "log"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.environ.update(environment, TMPDIR=folder)
                for fd in (self._out, self._in):
                    os.close(fd)
                os.dup2(log, 1)
                os.dup2(log, 2)
                main([str(theirs_in), str(theirs_out), str(parent)])
                sys.stdout.flush()
            finally:
                os._exit(0)
        for fd in (theirs_in, theirs_out):
            os.close(fd)
        self._log = log
        self._rest = b""

    def send(self, **message: Any) -> None:
        os.write(self._out, json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                return {"type": "silence"}
            data = os.read(self._in, 1 << 20)
            if not data:
                return {"type": "end"}
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        for file in message.get("files") or []:
            if isinstance(file, dict):  # one of an output, which is gone with the next prediction
                with open(file["path"], encoding="utf-8") as opened:
                    file["content"] = opened.read()
                file["path"] = os.path.basename(file["path"])
        return message

    def end(self) -> str:
        os.close(self._out)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        with open(self._log, encoding="utf-8") as log:
            log.seek(0)
            return log.read()


def run(case: dict[str, Any], scratch: str) -> dict[str, Any]:
    """Load a predictor, give it its inputs one after the other, and tell all that was heard."""
    folder = os.path.join(scratch, case["name"].replace("/", "-"))
    os.mkdir(folder)
    shutil.copy(case["file"], os.path.join(folder, "predict.py"))
    if case["config"]:
        with open(os.path.join(folder, "cog.yaml"), "w", encoding="utf-8") as file:
            file.write(case["config"])
    runner = Runner(case["environment"], folder)
    hello = runner.receive()
    runner.send(
        type="load",
        protocol=hello.get("protocol"),
        model_dir=folder,
        predict=case["predict"],
        concurrency=case["slots"],
    )
    loaded = runner.receive()
    heard: list[list[dict[str, Any]]] = []
    if loaded["type"] == "ready":
        for number, given in enumerate(case["inputs"]):
            heard.append(predict(runner, f"p{number}", given, folder))
        if case["schema"]:
            runner.send(type="schema")
            loaded["schema"] = runner.receive().get("document")
        runner.send(type="test_inputs")
        loaded["test_inputs"] = runner.receive()
    return {"name": case["name"], "loaded": loaded, "heard": heard, "log": runner.end()}


def predict(runner: Runner, id: str, given: Any, folder: str) -> list[dict[str, Any]]:
    """One prediction's messages. A file that it asks for holds the last part of its URL."""
    runner.send(type="predict", id=id, input=given, context={"tenant": "t1"})
    messages = []
    while True:
        message = runner.receive()
        messages.append(message)
        if message["type"] == "accepted" and message["files"]:
            paths = []
            for number, url in enumerate(message["files"]):
                os.makedirs(os.path.join(folder, id, str(number)))
                name = url.rpartition("/")[2] if "://" in url else "file"
                paths.append(os.path.join(folder, id, str(number), name))
                with open(paths[-1], "w", encoding="utf-8") as file:
                    file.write(url.rpartition("/")[2].rpartition(",")[2])
            runner.send(type="go", id=id, paths=paths)
        if message["type"] in ("done", "refused", "end", "silence"):
            return messages


if __name__ == "__main__":
    runtime, scratch = sys.argv[1:]
    sys.path[:] = [runtime, *(path for path in sys.path if os.path.abspath(path) != os.path.dirname(__file__))]
    # What most forks would import each for itself.
    import dataclasses  # noqa: F401

    from cog._runner.main import main

    for case in json.load(sys.stdin):
        print(json.dumps(run(case, scratch)), flush=True)
