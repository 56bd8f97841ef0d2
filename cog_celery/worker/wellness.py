"""Asks models for their health, every few seconds, and has the slots of those that are not well take nothing.

It must not know what is wrong with a model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from cog_celery.slots.slot import Slot

PAUSE = 2.0
"""Seconds between two questions."""

log = logging.getLogger(__name__)


def watch(slots: Sequence[Slot], closed: threading.Event, on_change: Callable[[bool], None]) -> None:
    """Until `closed`; `on_change` is told whether any of the slots can take work."""
    was: dict[int, str | None] = {slot.index: None for slot in slots}
    able = True
    while True:
        for slot in slots:
            if slot.first:
                slot.look_after_health()
        for slot in slots:
            if slot.sick != was[slot.index]:
                if slot.sick is None:
                    log.warning("the model of slot %d is well again: the slot takes work", slot.index)
                elif was[slot.index] is None:
                    log.error("the model of slot %d is not well, the slot takes nothing: %s", slot.index, slot.sick)
                was[slot.index] = slot.sick
            slot.heed_health()
        if any(slot.takes_work for slot in slots) != able:
            able = not able
            on_change(able)
        if closed.wait(PAUSE):
            return
