"""Celery's remote control of a worker: the commands that are heeded. They look, cancel predictions, and drain.

It must not know how commands arrive. Tasks are predictions here, as in Flower's rows, and turns are none. All other
commands are refused: they would change the pool, its queues or its limits, which are the slots' and not Celery's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from celery.worker.control import Panel

from cog_celery.delivery.presence import About
from cog_celery.settings import masked_url
from cog_celery.worker.admission import Refusals

LOOKS: Mapping[str, tuple[str, ...]] = {
    "ping": (),
    "conf": ("with_defaults",),
    "clock": (),
    "reserved": (),
    "scheduled": (),
    "revoked": (),
    "registered": (),
    "active_queues": (),
    "heartbeat": (),
    "enable_events": (),
    "disable_events": (),
}
"""Celery's own commands that stay, with the arguments that reach them."""
LONGEST_ID = 256

Command = Callable[..., Any]


class Controlled(Protocol):
    """What commands are about."""

    def cancel(self, id: str) -> bool:
        """Cancel a prediction; False when it does not run here."""
        ...

    def stop_soon(self) -> None:
        """Drain."""
        ...

    def about(self) -> About:
        """What it is, and what its slots do."""
        ...

    @property
    def begun(self) -> int:
        """Predictions so far."""
        ...

    @property
    def refused(self) -> Refusals:
        """What was not let in."""
        ...


class Commands(dict[str, Command]):
    """The commands by name, as Celery calls them: with its state and the arguments by name. They raise nothing."""

    def __init__(self, node: Controlled) -> None:
        super().__init__({name: _look(Panel.data[name], names) for name, names in LOOKS.items()})
        self._node = node
        self["revoke"] = self["terminate"] = self._revoke
        self["shutdown"] = self._shutdown
        self["stats"] = self._stats
        self["active"] = self._active
        self["query_task"] = self._query_task

    def __missing__(self, name: str) -> Command:
        self._node.refused.add("it is a remote command that is not heeded")
        return lambda state, /, **arguments: {"error": "this worker does not heed this command"}

    def _stats(self, state: Any, /, **options: Any) -> Any:
        """Celery's own, and what was refused, by reason."""
        stats = _look(Panel.data["stats"], ())(state)
        total = {self._node.about().model: self._node.begun}
        return {**stats, "total": total, "refused": dict(self._node.refused.counts)}

    def _active(self, state: Any, /, **options: Any) -> list[dict[str, Any]]:
        return list(running(self._node.about()))

    def _query_task(self, state: Any, /, ids: Any = (), **options: Any) -> dict[str, Any]:
        wanted = [ids] if isinstance(ids, str) else ids if isinstance(ids, list) else []
        return {one["id"]: ["active", one] for one in running(self._node.about()) if one["id"] in wanted}

    def _revoke(self, state: Any, /, task_id: Any = (), **options: Any) -> dict[str, str]:
        """Cancel predictions by their ids: those that run here now, the others when they come here."""
        ids = [task_id] if isinstance(task_id, str) else list(task_id) if isinstance(task_id, list) else []
        ids = [id for id in ids if isinstance(id, str) and len(id) <= LONGEST_ID]
        found = [id for id in ids if self._node.cancel(id)]
        return {"ok": f"canceled: {', '.join(found)}" if found else "to be canceled when their turn comes"}

    def _shutdown(self, state: Any, /, **options: Any) -> dict[str, str]:
        """As SIGTERM: what runs ends first."""
        self._node.stop_soon()
        return {"ok": "draining"}


def running(about: About) -> Iterator[dict[str, Any]]:
    """The predictions in a worker's slots, in the form of Celery's tasks."""
    now = time.time()
    for index, slot in enumerate(about.slots):
        for one in slot.running:
            where = {"slot": index, "attempt": one.attempt} | ({} if slot.gpu is None else {"gpu": slot.gpu})
            yield {
                "id": one.id,
                "name": about.model,
                "args": [],
                "kwargs": where,
                "time_start": now - one.seconds,
                "acknowledged": True,
                "worker_pid": os.getpid(),
            }


def _look(command: Command, names: tuple[str, ...]) -> Command:
    def look(state: Any, /, **arguments: Any) -> Any:
        try:
            return _masked(command(state, **{name: arguments[name] for name in names if name in arguments}))
        except Exception as error:  # of arguments that make no sense
            return {"error": f"the command failed: {type(error).__name__}"}

    return look


def _masked(value: Any) -> Any:
    """The value without what may be secret in its URLs."""
    if isinstance(value, str):
        return masked_url(value) if "://" in value else value
    if isinstance(value, dict):
        return {key: _masked(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(one) for one in value]
    return value
