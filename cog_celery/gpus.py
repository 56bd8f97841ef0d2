"""Which GPUs each slot may see: one value of CUDA_VISIBLE_DEVICES per slot, from `--gpus` and the mask we run under.

It must not know what a slot does with its value; nothing here reads or changes the environment.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from cog_celery.errors import UsageError

_ID = re.compile(r"\d{1,6}|(GPU|MIG)-[0-9A-Za-z/-]+")
_UUID_IN_LISTING = re.compile(r"\(UUID: ((?:GPU|MIG)-[0-9A-Za-z/-]+)\)")
_NVIDIA_SMI_TIMEOUT: Final = 30.0


class Found(NamedTuple):
    """The machine's GPUs as CUDA_VISIBLE_DEVICES names them, in order; `why_none` says why there are none."""

    ids: tuple[str, ...]
    why_none: str = ""


def assign(
    spec: str | None,
    *,
    slots: int,
    slots_per_gpu: int = 1,
    gpus_per_slot: int = 1,
    outer: str | None = None,
    detect: Callable[[], Found] | None = None,
) -> list[str | None]:
    """One value of CUDA_VISIBLE_DEVICES per slot; None leaves the slot's environment as it is. Raises UsageError.

    `spec`: None (`slots` slots, environment untouched), `none` (`slots` slots that see no GPU), `auto` (all GPUs), or
    ids with commas between them: indexes, `GPU-…` or `MIG-…`. With GPUs, they give the number of slots: `slots_per_gpu`
    to each, or one to every `gpus_per_slot`. `outer` is the CUDA_VISIBLE_DEVICES of this process, None when unset:
    then indexes count within it, and nothing outside it is given away.
    """
    if slots_per_gpu < 1 or gpus_per_slot < 1 or slots < 1:
        raise UsageError("slots, slots per GPU and GPUs per slot must be at least 1")
    if spec is None:
        return [None] * slots
    if spec.strip() == "none":
        return [""] * slots
    if slots_per_gpu > 1 and gpus_per_slot > 1:
        raise UsageError(
            "slots per GPU and GPUs per slot exclude each other: a GPU is shared, or several make one slot"
        )

    gpus = _chosen(spec, None if outer is None else visible(outer), detect or find)
    if len(gpus) % gpus_per_slot:
        raise UsageError(f"{len(gpus)} GPUs ({', '.join(gpus)}) cannot be dealt out {gpus_per_slot} to a slot")
    groups = [",".join(gpus[at : at + gpus_per_slot]) for at in range(0, len(gpus), gpus_per_slot)]
    # Shared GPUs take turns in the list, so that the first slots to be used are on different ones.
    return [*groups] * slots_per_gpu


def visible(mask: str) -> tuple[str, ...]:
    """The ids in a CUDA_VISIBLE_DEVICES, as CUDA reads it: what stands behind the first wrong one does not count."""
    ids: list[str] = []
    for word in mask.split(","):
        if not _ID.fullmatch(word.strip()):
            break
        ids.append(word.strip())
    return tuple(ids)


def find() -> Found:
    """The machine's GPUs, whatever CUDA_VISIBLE_DEVICES says. A GPU that is split is given as its MIG devices.

    Asks NVML (the package nvidia-ml-py), else `nvidia-smi -L`.
    """
    reasons = []
    for probe in (_ask_nvml, _ask_nvidia_smi):
        found = probe()
        if found.ids:
            return found
        reasons.append(found.why_none)
    return Found((), "; ".join(reasons))


def _chosen(spec: str, mask: tuple[str, ...] | None, detect: Callable[[], Found]) -> list[str]:
    if spec.strip() == "auto":
        return list(mask) if mask else list(_all(mask, detect))
    words = [word.strip() for word in spec.split(",")]
    for word in words:
        if not _ID.fullmatch(word):
            raise UsageError(
                f"not a GPU: {word!r} in --gpus {spec}; write auto, none, or ids such as 0,1 or GPU-… or MIG-…"
            )
    named = [str(int(word)) if word.isdigit() else word for word in words]
    gpus = _on_this_machine(named, detect) if mask is None else [_within(mask, gpu) for gpu in named]
    for position, gpu in enumerate(gpus):
        if gpu in gpus[:position]:
            raise UsageError(
                f"GPU {words[position]} is named twice in --gpus {spec}; for several slots on it, use --slots-per-gpu"
            )
    return gpus


def _all(mask: tuple[str, ...] | None, detect: Callable[[], Found]) -> Sequence[str]:
    if mask is not None:
        raise UsageError("--gpus auto: CUDA_VISIBLE_DEVICES hides all GPUs; unset it, or use --gpus none or --slots")
    found = detect()
    if not found.ids:
        raise UsageError(f"--gpus auto: no GPU found ({found.why_none}); name them, or use --gpus none or --slots")
    return found.ids


def _on_this_machine(gpus: list[str], detect: Callable[[], Found]) -> list[str]:
    """The same, if the indexes among them exist. CUDA would say nothing and show the model no GPU at all."""
    if not any(gpu.isdigit() for gpu in gpus):
        return gpus
    present = detect().ids
    # Where none are found, or some are split, an index cannot be judged.
    if present and all(gpu.isdigit() for gpu in present):
        for gpu in gpus:
            if gpu.isdigit() and gpu not in present:
                raise UsageError(f"there is no GPU {gpu} on this machine; it has {', '.join(present)}")
    return gpus


def _within(mask: tuple[str, ...], gpu: str) -> str:
    """The id in the mask that `gpu` means there."""
    shown = f"CUDA_VISIBLE_DEVICES={','.join(mask)}"
    if gpu.isdigit():
        if int(gpu) < len(mask):
            return mask[int(gpu)]
        raise UsageError(f"there is no GPU {gpu} within {shown}: indexes count from 0, and it shows {len(mask)}")
    if gpu in mask:
        return gpu
    raise UsageError(f"GPU {gpu} is not in {shown}; name GPUs by their index in it, from 0")


def _ask_nvml() -> Found:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return Found((), "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        try:
            count = nvml.nvmlDeviceGetCount()
            ids = [gpu for index in range(count) for gpu in _split(nvml, index)]
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return Found((), f"NVML: {error}")
    return Found(tuple(ids), "NVML reports none")


def _split(nvml: Any, index: int) -> list[str]:
    """One GPU's MIG devices, or its index where it is whole."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError_NotSupported:
        return [str(index)]
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return [str(index)]
    devices = []
    for part in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, part)
        except nvml.NVMLError_NotFound:
            continue  # places are numbered to the maximum, taken or not
        uuid = nvml.nvmlDeviceGetUUID(device)
        devices.append(uuid.decode() if isinstance(uuid, bytes) else str(uuid))
    return devices


def _ask_nvidia_smi() -> Found:
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT, check=True
        ).stdout
    except FileNotFoundError:
        return Found((), "nvidia-smi is not installed")
    except (OSError, subprocess.SubprocessError) as error:
        return Found((), f"nvidia-smi: {error}")
    return Found(parse_listing(listing), "nvidia-smi lists none")


def parse_listing(listing: str) -> tuple[str, ...]:
    """The ids in what `nvidia-smi -L` prints: a line `GPU 0: …` each, and lines ` MIG …` below those that are split."""
    ids: list[str] = []
    for line in listing.splitlines():
        gpu = re.match(r"GPU (\d+):", line)
        part = _UUID_IN_LISTING.search(line)
        if gpu:
            ids.append(gpu[1])
        elif part and part[1].startswith("MIG-"):
            if ids and ids[-1].isdigit():
                ids.pop()  # the split GPU itself
            ids.append(part[1])
    return tuple(ids)


class Usage(NamedTuple):
    """Of one GPU: bytes of its memory, and the share of time in which it worked; None where it cannot say."""

    id: str
    used: int
    total: int
    utilization: float | None


class Gauges:
    """Reads how GPUs are used from NVML, where it is there. For one thread at a time."""

    def __init__(self, ids: Sequence[str]) -> None:
        """`ids` as CUDA_VISIBLE_DEVICES names them; none: all of this machine."""
        self._ids = tuple(ids)
        self._nvml: Any = None
        self._handles: dict[str, Any] | None = None

    def read(self) -> list[Usage]:
        """Those that can be read now; none without NVML."""
        if self._handles is None:
            self._handles = self._open()
        usages = []
        for id, handle in self._handles.items():
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                usages.append(Usage(id, int(memory.used), int(memory.total), self._utilization(handle)))
            except self._nvml.NVMLError:
                continue  # it fell off the bus, say: then its figures are missing, and others are there
        return usages

    def _open(self) -> dict[str, Any]:
        """NVML stays open for as long as this process lives: to open it takes long, and wakes sleeping GPUs."""
        try:
            nvml = self._nvml = importlib.import_module("pynvml")
        except ImportError:
            return {}
        handles: dict[str, Any] = {}
        try:
            nvml.nvmlInit()
            for id in self._ids or [str(index) for index in range(nvml.nvmlDeviceGetCount())]:
                try:
                    by_index = id.isdigit()
                    handles[id] = (
                        nvml.nvmlDeviceGetHandleByIndex(int(id)) if by_index else nvml.nvmlDeviceGetHandleByUUID(id)
                    )
                except nvml.NVMLError:
                    continue
        except nvml.NVMLError:
            return {}
        return handles

    def _utilization(self, handle: Any) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except self._nvml.NVMLError:
            return None  # a part of a split GPU has none
