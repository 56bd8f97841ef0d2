"""A worker's GPUs by NVML: how they are used, and whether they are well. One NVML session for the process.

It must not know what runs on them, nor what becomes of a slot whose GPU fails.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cog_celery.gpus.finding import Device, text
from cog_celery.gpus.xids import DOUBLE_BIT, HARMLESS, described

EVERY: Final = 5.0
"""Seconds that the wait for an event lasts. Then each GPU is looked at: one that falls off the bus may not say so."""
LATE: Final = 0.5
"""Seconds by which the driver's word of a fault may come after the end of a process that it killed."""
GONE_PAUSES: Final = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between looks for a GPU that does not answer. It is not held open meanwhile: a reset wants it free."""
FAULT_PAUSES: Final = (60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Seconds for which a GPU that has reported a fault is left alone, by how many it has reported in this process."""
PATIENCE: Final = 5.0
"""Seconds for NVML to answer a slot or a scraper: with a GPU that is gone, its calls may hang for ever."""
MOST_EVENTS: Final = 1000
"""Events that are read of a set that is given up: a program may cause them faster than they are read."""
NO_INSTANCE: Final = 0xFFFFFFFF
TELL_AGAIN: Final = 60.0
"""Seconds until the same Xid of a GPU is told again: a program may cause thousands."""

log = logging.getLogger(__name__)


class Usage(NamedTuple):
    """Of one GPU: bytes of its memory, and the share of time in which it worked; None where it cannot say."""

    label: str
    uuid: str
    used: int
    total: int
    utilization: float | None


@dataclass
class _Trouble:
    """What is wrong with a device; not looked at again before `again_at` (monotonic)."""

    reason: str
    again_at: float
    tries: int = 0


class Monitor:
    """read() and trouble() may be called from any thread, run() is for one."""

    def __init__(self, devices: Sequence[Device] = ()) -> None:
        """`devices`: those to look after; none: all of this machine, for read() alone."""
        self._devices = {device.id: device for device in devices}
        self._all = not devices
        self._on_change: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        """NVML is opened and closed, and asked anything but to wait for events, with it held."""
        self._nvml: Any = None
        self._asked = self._opened = False
        self._why_none: str | None = None
        self._handles: dict[str, Any] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._faults: dict[str, int] = {}
        self._untold = False
        self._failure: str | None = None
        """Why it could not be opened again."""
        self._told_at: dict[tuple[str, int], float] = {}

    # -- figures

    def read(self) -> list[Usage]:
        """Those that can be read now; none without NVML."""
        with self._in_time() as asked:
            if not asked:
                return []
            self.open()
            usages = []
            for id, handle in self._handles.items():
                try:
                    memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                    usage = (int(memory.used), int(memory.total), self._utilization(handle))
                    usages.append(Usage(self._devices[id].label, id, *usage))
                except self._nvml.NVMLError:
                    continue  # it fell off the bus, say: then its figures are missing, and others are there
            return usages

    def _utilization(self, handle: Any) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except self._nvml.NVMLError:
            return None  # a part of a split GPU has none

    # -- health

    def open(self) -> str | None:
        """Open NVML, unless that was tried before; why there is none. It stays open: to open it takes long, and wakes
        sleeping GPUs.
        """
        with self._changed:
            if not self._asked:
                self._asked = True
                try:
                    self._nvml = importlib.import_module("pynvml")
                    self._why_none = self._begin(set(self._devices))
                except ImportError:
                    self._why_none = "nvidia-ml-py is not installed"
            return self._why_none

    @property
    def _there(self) -> bool:
        """Whether NVML was opened once, and so can be asked."""
        return self._asked and self._why_none is None

    def trouble(self, ids: Sequence[str], *, late: bool = False) -> str | None:
        """What is wrong with the first of these devices that is not well, looked at now; `late`: if nothing is, listen
        a moment longer. Of a driver that hangs, what was known before.
        """
        if not self._there or not ids:
            return None
        look = threading.Thread(target=self._look_now, args=(ids, late), name="look at a gpu", daemon=True)
        look.start()
        look.join(PATIENCE + LATE)
        if look.is_alive():
            log.warning("NVML has not answered within %g s", PATIENCE)
        self._tell()
        return self.known_trouble(ids)

    def _look_now(self, ids: Sequence[str], late: bool) -> None:
        with self._in_time() as asked:
            if not asked:
                return
            self._look_at(ids)
            if late:
                self._changed.wait_for(lambda: self.known_trouble(ids), LATE)

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[bool]:
        """Hold `_changed`, unless somebody holds it for too long: a call to NVML may never come back."""
        if not self._changed.acquire(timeout=PATIENCE):
            yield False
            return
        try:
            yield True
        finally:
            self._changed.release()

    def known_trouble(self, ids: Sequence[str]) -> str | None:
        """The same without a look."""
        troubles = ((id, self._troubles.get(id)) for id in ids)
        return next((f"GPU {self._devices[id].label}: {one.reason}" for id, one in troubles if one is not None), None)

    def states(self) -> list[tuple[str, str, str | None]]:
        """Of those to look after: label, id, and what is known to be wrong. None where nobody looks after them."""
        if self._all or not self._there:
            return []
        return [(one.label, id, self.known_trouble([id])) for id, one in self._devices.items()]

    def run(self, closed: threading.Event, on_change: Callable[[], None]) -> None:
        """Until `closed`: look after the GPUs, and tell when one fails or is well again; what, known_trouble() says.

        Returns at once where there is no NVML.
        """
        self._on_change = on_change
        if self.open() is not None:
            self._say_unwatched(self._why_none)
            return
        self._look_at(self._devices)
        while not closed.is_set():
            with self._changed:
                self._look_again()
                events, known = self._listen(), set(self._troubles)
            self._tell()
            while not closed.is_set() and known == set(self._troubles) and not self._due():
                self._wait(events, closed)
            if events is not None:
                self._give_up(events)

    def _tell(self) -> None:
        """Of what has changed, with nothing held: it may take a while."""
        untold, self._untold = self._untold, False
        if untold:
            self._on_change()

    def _due(self) -> bool:
        now = time.monotonic()
        return any(now >= trouble.again_at for trouble in tuple(self._troubles.values()))

    def _look_again(self) -> None:
        """At those whose pause is over; what is not well is let go of."""
        now = time.monotonic()
        due = {id for id, trouble in self._troubles.items() if now >= trouble.again_at}
        if due:
            self._begin_again({id for id in self._devices if id not in self._troubles or id in due})
        for id in due:
            trouble, reason = self._troubles[id], self._look(id)
            if reason is None:
                del self._troubles[id]
                self._untold = True
            else:
                trouble.tries += 1
                trouble.reason = reason
                trouble.again_at = now + GONE_PAUSES[min(trouble.tries, len(GONE_PAUSES) - 1)]
        if self._troubles:
            self._begin_again({id for id in self._devices if id not in self._troubles})
            if len(self._troubles) == len(self._devices):
                self._close()

    def _begin_again(self, ids: set[str]) -> None:
        failure, self._failure = self._failure, self._begin(ids)
        if self._failure is not None and self._failure != failure:
            self._say_unwatched(self._failure)

    def _say_unwatched(self, why: str | None) -> None:
        log.warning("GPUs are not watched, one that fails is not noticed as such: %s", why)

    def _close(self) -> None:
        if self._opened:
            self._opened, self._handles = False, {}
            self._quietly(self._nvml.nvmlShutdown)

    def _begin(self, ids: set[str]) -> str | None:
        """Open NVML anew, with these devices and no others; why that cannot be: then nothing is known of any."""
        nvml = self._nvml
        self._close()
        try:
            nvml.nvmlInit()
            self._opened = True
            if self._all:
                self._devices = {
                    str(index): Device(str(index), str(index)) for index in range(nvml.nvmlDeviceGetCount())
                }
                ids = set(self._devices)
        except nvml.NVMLError as error:
            return f"NVML: {error}"
        for id in self._devices:
            if id in ids:
                try:
                    self._handles[id] = self._handle(id)
                except nvml.NVMLError:
                    continue  # whoever looks at it says what is wrong
        if self._all:
            self._name_all()
        return None

    def _name_all(self) -> None:
        named = {}
        for id, handle in self._handles.items():
            try:
                uuid = text(self._nvml.nvmlDeviceGetUUID(handle))
            except self._nvml.NVMLError:
                continue
            named[uuid] = (Device(id, uuid), handle)
        self._devices = {uuid: device for uuid, (device, _) in named.items()}
        self._handles = {uuid: handle for uuid, (_, handle) in named.items()}

    def _handle(self, id: str) -> Any:
        nvml = self._nvml
        return nvml.nvmlDeviceGetHandleByIndex(int(id)) if id.isdigit() else nvml.nvmlDeviceGetHandleByUUID(id)

    def _look(self, id: str) -> str | None:
        """What is wrong with a device, as far as it says so now."""
        nvml = self._nvml
        with self._changed:
            if not self._opened:
                return self._troubles[id].reason if id in self._troubles else None
            try:
                handle = self._handles.get(id)
                if handle is None:
                    handle = self._handle(id)
                nvml.nvmlDeviceGetMemoryInfo(handle)
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
                pass  # it answers
            except nvml.NVMLError as error:
                return str(error)
            return self._needs(id)

    def _needs(self, id: str) -> str | None:
        """Whether its driver, if it is of 2025 or later, says that it must be reset."""
        nvml = self._nvml
        try:
            whole = self._handle(self._devices[id].parent or id)
            [field] = nvml.nvmlDeviceGetFieldValues(whole, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
            action = int(field.value.uiVal) if field.nvmlReturn == nvml.NVML_SUCCESS else None
        except (nvml.NVMLError, AttributeError):
            return None
        if action in (nvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET, getattr(nvml, "NVML_GPU_RECOVERY_ACTION_BUS_RESET", -1)):
            return "its driver says that it must be reset"
        if action == nvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT:
            return "its driver says that the machine must be started again"
        return None

    # -- events

    def _listen(self) -> Any:
        """An event set with all devices that are well; None where there are no events."""
        nvml = self._nvml
        with self._changed:
            try:
                events = nvml.nvmlEventSetCreate()
            except nvml.NVMLError:
                return None
            wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
            registered = False
            for whole in dict.fromkeys(self._devices[id].parent or id for id in self._handles):
                try:
                    handle = self._handle(whole)
                    nvml.nvmlDeviceRegisterEvents(
                        handle, wanted & nvml.nvmlDeviceGetSupportedEventTypes(handle), events
                    )
                    registered = True
                except nvml.NVMLError as error:
                    log.debug("GPU %s tells no events (%s): it is looked at", whole, error)
            if registered:
                return events
            self._quietly(nvml.nvmlEventSetFree, events)
            return None

    def _give_up(self, events: Any) -> None:
        """Free an event set. What it has not told yet counts: telling of changes may have taken long."""
        with self._changed:
            with contextlib.suppress(self._nvml.NVMLError):  # none is left, or a GPU is lost: it is looked at
                for _ in range(MOST_EVENTS):
                    self._heed(self._nvml.nvmlEventSetWait_v2(events, 0))
            self._quietly(self._nvml.nvmlEventSetFree, events)

    def _wait(self, events: Any, closed: threading.Event) -> None:
        """For an event, or until it is time to look."""
        nvml = self._nvml
        due = min((trouble.again_at for trouble in tuple(self._troubles.values())), default=float("inf"))
        patience = max(0.0, min(EVERY, due - time.monotonic()))
        event, failed = None, False
        try:
            if events is None:
                closed.wait(patience)
            else:
                event = nvml.nvmlEventSetWait_v2(events, int(patience * 1000) + 1)
        except nvml.NVMLError_Timeout:
            pass
        except nvml.NVMLError as error:
            log.debug("the wait for events of GPUs ended: %s", error)
            failed = True
        if event is not None:
            self._heed(event)
        known = len(self._troubles)
        self._look_at(self._devices)
        self._tell()
        if failed and known == len(self._troubles):
            closed.wait(min(1.0, patience))  # whatever it was, it is not to be hot

    def _look_at(self, ids: Iterable[str]) -> None:
        with self._changed:
            for id in ids:
                if id not in self._troubles and (reason := self._look(id)) is not None:
                    self._gone(id, reason)

    def _heed(self, event: Any) -> None:
        """An event is a fault, but for Xids that are the doing of what ran."""
        nvml = self._nvml
        if event.eventType == nvml.nvmlEventTypeXidCriticalError:
            number = int(event.eventData)
            if number in HARMLESS:
                self._tell_of(self._called(event), number)
                return
            reason = described(number)
        else:
            reason = DOUBLE_BIT
        for id in self._affected(event):
            if id not in self._troubles:
                faults = self._faults[id] = self._faults.get(id, 0) + 1
                pause = FAULT_PAUSES[min(faults, len(FAULT_PAUSES)) - 1]
                with self._changed:
                    self._fail(id, _Trouble(reason, time.monotonic() + pause))

    def _tell_of(self, called: str, number: int) -> None:
        now = time.monotonic()
        if now >= self._told_at.get((called, number), 0.0):
            self._told_at[called, number] = now + TELL_AGAIN
            log.warning("%s reports Xid %d, which is no fault of its own", called, number)

    def _called(self, event: Any) -> str:
        ids = self._affected(event)
        return "GPU " + ", ".join(self._devices[id].label for id in ids) if ids else "a GPU"

    def _affected(self, event: Any) -> list[str]:
        """The devices that an event is about: of a GPU in MIG mode one instance, if it says which."""
        nvml = self._nvml
        try:
            with self._changed:
                uuid = text(nvml.nvmlDeviceGetUUID(event.device))
        except nvml.NVMLError:
            return []  # it does not even say its name: whoever looks at it will see
        ids = [id for id, device in self._devices.items() if uuid in (id, device.parent)]
        if event.gpuInstanceId == NO_INSTANCE:
            return ids
        place = (event.gpuInstanceId, event.computeInstanceId)
        return [id for id in ids if self._devices[id].parent is None or self._place(id) in (place, None)]

    def _place(self, id: str) -> tuple[int, int] | None:
        nvml = self._nvml
        try:
            with self._changed:
                handle = self._handle(id)
                return nvml.nvmlDeviceGetGpuInstanceId(handle), nvml.nvmlDeviceGetComputeInstanceId(handle)
        except nvml.NVMLError:
            return None

    def _gone(self, id: str, reason: str) -> None:
        self._fail(id, _Trouble(reason, time.monotonic() + GONE_PAUSES[0]))

    def _fail(self, id: str, trouble: _Trouble) -> None:
        self._troubles[id] = trouble
        self._untold = True
        self._changed.notify_all()

    def _quietly(self, step: Callable[..., Any], *arguments: Any) -> None:
        try:
            step(*arguments)
        except self._nvml.NVMLError as error:
            log.debug("NVML: %s", error)
