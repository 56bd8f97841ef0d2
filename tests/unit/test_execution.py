"""One prediction whose runner and uploads do as a test says: what must hold whatever they do, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from cog_celery.delivery.link import Link
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.stream import Delivery, Entry
from cog_celery.errors import RunnerDied, UploadError
from cog_celery.files.cancel import Cancel
from cog_celery.runners.runner import Accepted, Done, FieldError, File, Lines, Message, Output, Runner
from cog_celery.runners.wake import Wake
from cog_celery.slots.execution import Execution
from cog_celery.slots.holding import Behind, Current, Desk
from tests.support.processes import wait_until


class Script:
    """A runner that says this, all at once; then it dies, or says nothing until it is canceled."""

    def __init__(self, *messages: Message | Lines, death: RunnerDied | None = None) -> None:
        self._death = death
        self._left = [list(messages)]
        self.canceled = threading.Event()

    def predict(self, *_: Any, **__: Any) -> None: ...

    def wait(self, timeout: float | None) -> list[Message | Lines]:
        if self._left:
            return self._left.pop()
        if self._death is not None:
            raise self._death
        assert self.canceled.wait(timeout) or timeout is not None
        return [Done("p", "canceled")] if self.canceled.is_set() else []

    def cancel(self) -> None:
        self.canceled.set()


class Place:
    """An outlet whose uploads end when a test says so."""

    all_open = True

    def __init__(self, prediction: Prediction) -> None:
        self._prediction = prediction
        self.uploads: list[Future[str]] = []
        self.shown: list[list[str]] = []
        self.cancel = Cancel()

    def refused(self, errors: Sequence[FieldError]) -> str:
        raise AssertionError

    def started(self) -> bool:
        return True

    def answered(self) -> bool:
        return True

    def changed(self) -> int | None:
        self.shown.append(list(self._prediction.logs))
        return 0

    def lines(self, lines: list[str]) -> list[str]:
        return lines

    def fetch(self, urls: list[str], cancel: Cancel) -> list[Path]:
        raise AssertionError

    def upload(self, path: str, cancel: Cancel) -> Future[str]:
        self.cancel = cancel
        self.uploads.append(Future())
        return self.uploads[-1]


@pytest.fixture
def wake() -> Iterator[Wake]:
    wake = Wake()
    yield wake
    wake.close()


def executed(
    wake: Wake, *messages: Message | Lines, timeout: float | None = None, death: RunnerDied | None = None
) -> tuple[Execution, Place]:
    """What remains to be finished once the runner has said all this."""
    prediction = Prediction()
    place = Place(prediction)
    runner = cast(Runner, Script(Accepted("p"), *messages, death=death))
    execution = Execution(runner, prediction, place, id="p", timeout=timeout, grace=1.0, wake=wake)
    execution.run(b"{}", hold=False, context=None)
    return execution, place


def a_file(number: int = 0) -> Output:
    return Output("p", msgspec.Raw(b"null"), [File([], f"/file{number}")])


def finishing(execution: Execution) -> threading.Thread:
    thread = threading.Thread(target=execution.finish)
    thread.start()
    return thread


def test_what_was_said_last_is_shown_while_files_are_on_their_way(wake: Wake) -> None:
    last = Done("p", "succeeded", msgspec.Raw(b"null"), [File([], "/file")])
    execution, place = executed(wake, Lines(["the last line"]), last)
    thread = finishing(execution)
    wait_until(lambda: place.shown == [["the last line"]], "the last line")
    place.uploads[0].set_result("http://h/file")
    thread.join(10)
    assert bytes(execution._prediction.single) == b'"http://h/file"'


@pytest.mark.parametrize("reason", ["canceled", "shutdown", "lost"])
def test_files_of_a_prediction_that_timed_out_are_given_up_for_any_other_reason(wake: Wake, reason: Any) -> None:
    execution, place = executed(wake, a_file(), timeout=0.01)
    thread = finishing(execution)
    assert execution.uploading and not place.cancel.is_set()
    execution.stop(reason)
    thread.join(10)
    assert not thread.is_alive()
    assert place.cancel.is_set()
    assert execution.reason == "timeout"
    assert execution._prediction.error == "Prediction timed out"


@pytest.mark.parametrize(
    ("timeout", "death", "error"),
    [(0.01, None, "Prediction timed out"), (None, RunnerDied(-9), str(RunnerDied(-9)))],
    ids=["timed out", "died"],
)
def test_nothing_more_is_sent_when_a_file_was_refused_after_the_end(
    wake: Wake, timeout: float | None, death: RunnerDied | None, error: str
) -> None:
    execution, place = executed(wake, a_file(), a_file(1), timeout=timeout, death=death)
    thread = finishing(execution)
    place.uploads[0].set_exception(UploadError("refused"))
    thread.join(10)
    assert place.cancel.is_set()
    assert execution._prediction.error == error


@pytest.mark.parametrize("at", [[0], ["x"], [-1], [0, 0]])
def test_a_file_has_no_place_within_a_text(wake: Wake, at: list[str | int]) -> None:
    ended = threading.Event()
    prediction = Prediction()
    runner = Script(Accepted("p"), Output("p", msgspec.Raw(b'"text"'), [File(at, "/file")]))
    runner.end = ended.set  # type: ignore[attr-defined]
    execution = Execution(
        cast(Runner, runner), prediction, Place(prediction), id="p", timeout=None, grace=1.0, wake=wake
    )
    execution.run(b"{}", hold=False, context=None)
    assert ended.is_set()
    assert prediction.fault == "platform" and "where its output has no place" in str(prediction.error)


def test_what_no_thread_can_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    behind = Behind("slot 0", lambda: None)
    monkeypatch.setattr(threading.Thread, "start", no_more)
    with pytest.raises(RuntimeError):
        behind.start(Current(Delivery(Entry("q", "1-1"), 1, b""), Desk(cast(Link, None), "s~00000000.0")), lambda: None)
    assert behind.current is None
