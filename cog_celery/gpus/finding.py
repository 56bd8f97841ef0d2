"""Which GPUs this machine has, in PCI order: asked of NVML (the package nvidia-ml-py), else of `nvidia-smi -L`.

It must not know who gets them, nor what CUDA_VISIBLE_DEVICES says.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from typing import Any, Final, NamedTuple

_UUID: Final = re.compile(r"\(UUID: ((?:GPU|MIG)-[0-9A-Za-z/-]+)\)")
_NVIDIA_SMI_TIMEOUT: Final = 30.0


class Device(NamedTuple):
    """A GPU, or a MIG instance of one.

    `label`: what people call it, its index in PCI order as nvidia-smi shows it, `0:1` for instance 1 of GPU 0; `id`:
    its name in CUDA_VISIBLE_DEVICES, a UUID wherever one is known; `parent`: an instance's GPU; `parts`: the instances
    of a GPU in MIG mode, None for one that is whole; `broken`: why it cannot be used at present.
    """

    label: str
    id: str
    parent: str | None = None
    parts: tuple[Device, ...] | None = None
    broken: str | None = None

    @property
    def leaves(self) -> tuple[Device, ...]:
        """What can be used: itself, or its instances."""
        return (self,) if self.parts is None else self.parts


class Found(NamedTuple):
    """The machine's GPUs; `why_none` says why there are none."""

    devices: tuple[Device, ...]
    why_none: str = ""


def find() -> Found:
    """The machine's GPUs, whatever CUDA_VISIBLE_DEVICES says."""
    reasons = []
    for probe in (_ask_nvml, _ask_nvidia_smi):
        found = probe()
        if found.devices:
            return found
        reasons.append(found.why_none)
    return Found((), "; ".join(reasons))


def _ask_nvml() -> Found:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return Found((), "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        try:
            devices = tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return Found((), f"NVML: {error}")
    return Found(devices, "NVML reports none")


def _device(nvml: Any, index: int) -> Device:
    label = str(index)
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = text(nvml.nvmlDeviceGetUUID(handle))
        return Device(label, uuid, parts=_parts(nvml, handle, label, uuid))
    except nvml.NVMLError as error:  # it is there and does not answer; the others do
        return Device(label, label, broken=f"NVML: {error}")


def _parts(nvml: Any, gpu: Any, label: str, uuid: str) -> tuple[Device, ...] | None:
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError_NotSupported:
        return None
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    parts = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place)
        except nvml.NVMLError_NotFound:
            continue  # places are numbered to the maximum, taken or not
        parts.append(Device(f"{label}:{place}", text(nvml.nvmlDeviceGetUUID(part)), parent=uuid))
    return tuple(parts)


def text(value: str | bytes) -> str:
    """As NVML's bindings return it, by their age."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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


def parse_listing(listing: str) -> tuple[Device, ...]:
    """What `nvidia-smi -L` prints: a line `GPU 0: …` each, and lines `MIG … Device 1: …` below those in MIG mode.

    One in MIG mode that has no instances looks as if it were whole.
    """
    devices: list[Device] = []
    for line in listing.splitlines():
        gpu, place, uuid = re.match(r"GPU (\d+):", line), re.search(r"Device +(\d+):", line), _UUID.search(line)
        if gpu:
            devices.append(Device(gpu[1], uuid[1] if uuid else gpu[1]))
        elif place and uuid and uuid[1].startswith("MIG-") and devices:
            whole = devices[-1]
            part = Device(f"{whole.label}:{place[1]}", uuid[1], parent=whole.id)
            devices[-1] = whole._replace(parts=(*(whole.parts or ()), part))
    return tuple(devices)
