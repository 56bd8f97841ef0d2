"""What a process says of itself beside its queue, for those who look: `cog-celery status`, and metrics.

It must not know who looks, nor is anything decided by it: whether a worker lives, its announce key says.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from cog_celery.delivery.link import Link, SharedLink
from cog_celery.delivery.stream import Queue
from cog_celery.errors import ServerError

if TYPE_CHECKING:
    from cog_celery.slots.holding import Current  # a bridge has none, and need not load it

LARGEST_FILE = 1 << 20
"""Bytes of a model's file that its version is made of."""
LONGEST_ID = 128
"""Characters of an id that are noted."""
LONGEST_REASON = 300
"""Characters of the reason why a slot takes nothing; a model's own text may be part of it."""

SlotState = Literal["idle", "busy", "restarting", "unwell", "out"]
"""`restarting`: its runner died; `unwell`: its model says so; `out`: its GPU failed, or its model cannot be set up."""

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


class Running(msgspec.Struct, frozen=True):
    """A prediction in a slot. `seconds`: how long it has been there, by its worker's clock; `uploading`: its predictor
    is done, and the slot may be at work on the next.
    """

    id: str
    entry: str
    attempt: int
    seconds: float
    uploading: bool = False


class SlotSeen(msgspec.Struct, frozen=True):
    """A slot. `gpu`: what people call its GPUs, with commas between them, None when it has none of its own; `devices`:
    the same as CUDA_VISIBLE_DEVICES names them; `reason`: why it takes nothing.
    """

    state: SlotState = "idle"
    gpu: str | None = None
    running: tuple[Running, ...] = ()
    devices: str | None = None
    reason: str | None = None


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a bridge or worker says of itself; all but the role and the state may be hostile text."""

    role: Literal["bridge", "worker"]
    name: str
    state: str = ""
    version: str
    model: str = ""
    model_version: str = ""
    slots: tuple[SlotSeen, ...] = ()


class Noted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept for a while of a prediction that has ended; times in seconds, each by one clock alone.

    `waited`: from XADD to its slot, `ran`: from there to its end, `predicted`: by the runner, `response`: the key.
    """

    id: str
    status: str
    fault: str | None = None
    waited: float | None = None
    ran: float | None = None
    predicted: float | None = None
    response: str | None = None


class SlotLike(Protocol):
    """What is looked at of a slot."""

    gpu: str | None
    devices: str | None

    @property
    def reason(self) -> str | None: ...
    @property
    def state(self) -> SlotState: ...
    @property
    def held(self) -> list[Current]: ...
    @property
    def current(self) -> Current | None: ...


def seen(slot: SlotLike) -> SlotSeen:
    """What a slot does now; from any thread."""
    now, front = time.monotonic(), slot.current
    running = tuple(
        Running(one.id, one.delivery.entry, one.delivery.attempt, round(now - one.since, 3), one is not front)
        for one in slot.held
    )
    reason = slot.reason
    return SlotSeen(
        "busy" if running else slot.state,
        *(slot.gpu, running, slot.devices),
        reason if reason is None else reason[:LONGEST_REASON],
    )


def noted(id: str, status: str, fault: str | None = None, **more: float | str | None) -> bytes:
    """It, as it is kept."""
    return _encode(Noted(id[:LONGEST_ID], status, fault, **more))  # type: ignore[arg-type]


def model_version(folder: Path) -> str:
    """A name for what is in cog.yaml and the Python files beside it: the same for the same."""
    digest = hashlib.sha256()
    for file in sorted([folder / "cog.yaml", *folder.glob("*.py")]):
        try:
            with file.open("rb") as content:
                digest.update(b"%s\0%s\0" % (file.name.encode(errors="replace"), content.read(LARGEST_FILE)))
        except OSError:
            continue  # whoever loads the model says what is wrong with it
    return digest.hexdigest()[:12]


class Presence:
    """Says of this process what `about` returns, whenever something changed, and every third of a lease."""

    def __init__(self, queue: Queue, link: SharedLink, life: str, lease: float, about: Callable[[], About]) -> None:
        self._queue = queue
        self._link = link
        self._life = life
        self._every = lease / 3
        self._about = about
        self._look = threading.Event()
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def changed(self) -> None:
        """Something is worth to be seen at once."""
        self._look.set()

    def leave(self, patience: float) -> None:
        """Say that this process ends as it should, if that can be said within `patience` seconds."""
        self._leaving = True
        self._look.set()
        self._thread.join(patience)

    def _run(self) -> None:
        while not self._leaving:
            self._look.clear()
            self._say(lambda link: self._queue.describe(link, self._life, _encode(self._about())))
            self._look.wait(self._every)
        self._say(lambda link: self._queue.undescribe(link, self._life))

    def _say(self, step: Callable[[Link], None]) -> None:
        try:
            with self._link.lent() as link:
                step(link)
        except ServerError as error:
            log.debug("this process cannot be seen as it is for now: %s", error)


def gpus_of(slots: Sequence[SlotSeen]) -> list[str]:
    """The GPUs that slots see, each once."""
    return list(dict.fromkeys(gpu for slot in slots if slot.gpu for gpu in slot.gpu.split(",")))
