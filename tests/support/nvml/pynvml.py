"""NVML as nvidia-ml-py binds it, for a machine that a file describes: what tests put first on a process's path.

Constants, structures and errors are the real binding's; only the calls of the library behind it are ours. FAKE_NVML
names the file, tests/support/gpus.py writes it. It must not know what is tested.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_REAL = "_real_pynvml"
if _REAL not in sys.modules:
    _file = next(file for file in importlib.metadata.files("nvidia-ml-py") or () if file.name == "pynvml.py")
    _spec = importlib.util.spec_from_file_location(_REAL, str(_file.locate()))
    assert _spec is not None and _spec.loader is not None
    sys.modules[_REAL] = importlib.util.module_from_spec(_spec)  # it looks itself up there
    _spec.loader.exec_module(sys.modules[_REAL])
_pynvml: Any = sys.modules[_REAL]
globals().update({name: value for name, value in vars(_pynvml).items() if not name.startswith("__")})
NVMLError = _pynvml.NVMLError

GENERATION = 1 << 20
"""Between the addresses of handles of one session and those of the next, which are not valid any more."""
PLACES = 64

sessions = 0
"""How often it is open."""
held: set[str] = set()
"""UUIDs of the GPUs that this process holds open."""
_generation = 0
_sets: dict[int, dict[str, Any]] = {}


def _machine() -> dict[str, Any]:
    return json.loads(Path(os.environ["FAKE_NVML"]).read_text())  # type: ignore[no-any-return]


def _fail(name: str) -> Any:
    raise NVMLError(getattr(_pynvml, f"NVML_ERROR_{name}"))


def nvmlInit() -> None:
    global sessions, _generation
    if not _machine()["driver"]:
        _fail("LIBRARY_NOT_FOUND")
    sessions += 1
    if sessions == 1:
        _generation += 1


def nvmlShutdown() -> None:
    global sessions
    if not sessions:
        _fail("UNINITIALIZED")
    sessions -= 1
    if not sessions:
        held.clear()
        _sets.clear()
        _show_sets()


def _gpus() -> list[dict[str, Any]]:
    if not sessions:
        _fail("UNINITIALIZED")
    return _machine()["gpus"]  # type: ignore[no-any-return]


def _handle(number: int) -> Any:
    return ctypes.cast(ctypes.c_void_p(_generation * GENERATION + number), _pynvml.c_nvmlDevice_t)


def _found(handle: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The GPU of a handle, and the instance."""
    generation, number = divmod(ctypes.cast(handle, ctypes.c_void_p).value or 0, GENERATION)
    gpus = _gpus()
    index, place = divmod(number - 1, PLACES)
    if generation != _generation or not 0 <= index < len(gpus):
        _fail("INVALID_ARGUMENT")
    gpu = gpus[index]
    if gpu["error"]:
        _fail(gpu["error"])
    if not place:
        return gpu, None
    parts = [part for part in gpu["parts"] or () if part["place"] == place - 1]
    return gpu, parts[0] if parts else _fail("NOT_FOUND")


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    if not 0 <= index < len(_gpus()):
        _fail("INVALID_ARGUMENT")
    handle = _handle(1 + index * PLACES)
    held.add(_found(handle)[0]["uuid"])
    return handle


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    for index, gpu in enumerate(_gpus()):
        for place, one in [(0, gpu), *((part["place"] + 1, part) for part in gpu["parts"] or ())]:
            if one["uuid"] == uuid and gpu["error"] != "NOT_FOUND":
                handle = _handle(1 + index * PLACES + place)
                held.add(_found(handle)[0]["uuid"])
                return handle
    return _fail("NOT_FOUND")


def nvmlDeviceGetUUID(handle: Any) -> str:
    gpu, part = _found(handle)
    return str((part or gpu)["uuid"])


def nvmlDeviceGetMigMode(handle: Any) -> list[int]:
    gpu, _ = _found(handle)
    if gpu["old"]:
        _fail("NOT_SUPPORTED")
    return [int(gpu["parts"] is not None)] * 2


def nvmlDeviceGetMaxMigDeviceCount(handle: Any) -> int:
    _found(handle)
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Any, place: int) -> Any:
    gpu, _ = _found(handle)
    if not any(part["place"] == place for part in gpu["parts"] or ()):
        _fail("NOT_FOUND")
    return _handle(1 + _gpus().index(gpu) * PLACES + place + 1)


def nvmlDeviceGetGpuInstanceId(handle: Any) -> int:
    _, part = _found(handle)
    return int(part["place"]) + 1 if part else _fail("NOT_SUPPORTED")


def nvmlDeviceGetComputeInstanceId(handle: Any) -> int:
    return 0 if _found(handle)[1] else _fail("NOT_SUPPORTED")


def nvmlDeviceGetMemoryInfo(handle: Any) -> Any:
    gpu, part = _found(handle)
    total = 10 << 30 if part else 80 << 30
    return _pynvml.c_nvmlMemory_t(total=total, used=gpu["used"], free=total - gpu["used"])


def nvmlDeviceGetUtilizationRates(handle: Any) -> Any:
    if _found(handle)[1]:
        _fail("NOT_SUPPORTED")
    return _pynvml.c_nvmlUtilization_t(gpu=25, memory=1)


def nvmlDeviceGetFieldValues(handle: Any, ids: list[int]) -> Any:
    gpu, _ = _found(handle)
    values = (_pynvml.c_nvmlFieldValue_t * len(ids))()
    for value, id in zip(values, ids, strict=True):
        value.fieldId = id
        value.nvmlReturn = _pynvml.NVML_ERROR_NOT_SUPPORTED
        if id == _pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION and gpu["action"] is not None:
            value.nvmlReturn = _pynvml.NVML_SUCCESS
            value.valueType = _pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
            value.value.uiVal = gpu["action"]
    return values


def nvmlEventSetCreate() -> Any:
    _gpus()
    number = max(_sets, default=0) + 1
    _sets[number] = {"gpus": set(), "next": len(_machine()["events"])}
    return ctypes.cast(ctypes.c_void_p(number), _pynvml.c_nvmlEventSet_t)


def _show_sets() -> None:
    """Which GPUs' events are waited for in this process, for whoever made the machine."""
    file = Path(os.environ["FAKE_NVML"] + ".listening")
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(sorted({uuid for one in _sets.values() for uuid in one["gpus"]})))
    os.replace(temporary, file)


def _set(events: Any) -> dict[str, Any]:
    return _sets.get(ctypes.cast(events, ctypes.c_void_p).value or 0) or _fail("INVALID_ARGUMENT")


def nvmlEventSetFree(events: Any) -> None:
    _set(events)
    del _sets[ctypes.cast(events, ctypes.c_void_p).value or 0]
    _show_sets()


def nvmlDeviceGetSupportedEventTypes(handle: Any) -> int:
    gpu, part = _found(handle)
    if gpu["old"] or part:
        _fail("NOT_SUPPORTED")
    return int(_pynvml.nvmlEventTypeAll)


def nvmlDeviceRegisterEvents(handle: Any, kinds: int, events: Any) -> None:
    gpu, part = _found(handle)
    if part or not kinds:
        _fail("INVALID_ARGUMENT")
    _set(events)["gpus"].add(gpu["uuid"])
    _show_sets()


def nvmlEventSetWait_v2(events: Any, milliseconds: int) -> Any:
    until = time.monotonic() + milliseconds / 1000
    while True:
        one, machine = _set(events), _machine()
        for gpu in machine["gpus"]:
            if gpu["error"] and gpu["uuid"] in one["gpus"]:
                _fail("GPU_IS_LOST")
        while one["next"] < len(machine["events"]):
            event = machine["events"][one["next"]]
            one["next"] += 1
            if event["uuid"] in one["gpus"]:
                return _pynvml.c_nvmlEventData_t(
                    device=nvmlDeviceGetHandleByUUID(event["uuid"]),
                    eventType=event["kind"],
                    eventData=event["data"],
                    gpuInstanceId=event["instance"],
                    computeInstanceId=0 if event["instance"] != 0xFFFFFFFF else 0xFFFFFFFF,
                )
        if time.monotonic() >= until:
            _fail("TIMEOUT")
        time.sleep(0.01)
