"""Predictions that are canceled before they come: each once, and not those that are sent again later."""

from __future__ import annotations

import time

import pytest

from cog_celery.worker import revoked
from cog_celery.worker.revoked import Revoked


def entry(ago: float) -> str:
    """The id of an entry that was added so many seconds ago."""
    return f"{int((time.time() - ago) * 1000)}-0"


def test_a_prediction_is_canceled_once_by_its_id_or_by_its_entrys() -> None:
    waiting = Revoked()
    one, other = entry(5), entry(6)
    waiting.add("a")
    waiting.add(other)
    assert [waiting.take("a", one), waiting.take("a", one)] == [True, False]
    assert [waiting.take("b", other), waiting.take("b", other)] == [True, False]


def test_what_is_sent_under_a_canceled_id_later_is_another_prediction() -> None:
    waiting = Revoked()
    waiting.add("a")
    assert not waiting.take("a", entry(-10))
    waiting.add("a")
    assert waiting.take("a", entry(-0.5)), "clocks differ"


def test_an_entry_whose_id_tells_no_time_is_canceled() -> None:
    waiting = Revoked()
    waiting.add("a")
    assert waiting.take("a", "7-0")


def test_the_oldest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoked, "MOST", 2)
    waiting = Revoked()
    for id in ("a", "b", "a", "c"):
        waiting.add(id)
    assert [waiting.take(id, entry(1)) for id in ("a", "b", "c")] == [True, False, True]
