"""Which GPUs each slot may see: one share per slot, from `--gpus` and the masks we run under.

It must not know what a slot does with its share; nothing here reads or changes the environment.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from cog_celery.errors import UsageError
from cog_celery.gpus.finding import Device, Found, find
from cog_celery.settings import Settings

_ID: Final = re.compile(r"\d{1,6}|\d{1,6}:\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+")
_IN_A_MASK: Final = re.compile(r"\d{1,6}|(GPU|MIG)-[0-9A-Za-z/-]+")
_UUID: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
_HOW: Final = "write auto, none, or ids with commas between them: 0,1 or GPU-… or MIG-…, and 0+1,2+3 for sets"

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """What one slot sees.

    `visible`: its CUDA_VISIBLE_DEVICES, None leaves the slot's environment as it is; `label`: what people see of it,
    None for a slot without GPUs of its own; `devices`: these, which can be watched where NVML knows them.
    """

    visible: str | None = None
    label: str | None = None
    devices: tuple[Device, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its devices, as CUDA_VISIBLE_DEVICES names them."""
        return tuple(device.id for device in self.devices)


def assign(
    spec: str | None,
    *,
    slots: int,
    slots_per_gpu: int = 1,
    gpus_per_slot: int = 1,
    outer: str | None = None,
    container: str | None = None,
    detect: Callable[[], Found] | None = None,
) -> list[Share]:
    """One share per slot. Raises UsageError.

    `spec`: None (`slots` slots, environment untouched), `none` (`slots` slots that see no GPU), `auto` or `all`, or
    ids with commas between them: indexes in PCI order, `0:1` for a MIG instance, `GPU-…` or `MIG-…`, cut as long as
    they are one device's; with `+` between those of a set. A GPU in MIG mode stands for its instances. With GPUs, they
    give the number of slots: `slots_per_gpu` to each GPU or set, or one to every `gpus_per_slot`.

    `outer` is the CUDA_VISIBLE_DEVICES of this process, None when unset: then indexes count within it, and nothing
    outside it is given away. `container`: its NVIDIA_VISIBLE_DEVICES, of which UUIDs alone are heeded: a container's
    runtime has shown what indexes mean before we look, and Kubernetes says `void` where it shows devices otherwise.
    """
    if slots_per_gpu < 1 or gpus_per_slot < 1 or slots < 1:
        raise UsageError("slots, slots per GPU and GPUs per slot must be at least 1")
    if spec is None:
        return [Share()] * slots
    if spec.strip() == "none":
        return [Share("")] * slots
    if slots_per_gpu > 1 and gpus_per_slot > 1:
        raise UsageError(
            "slots per GPU and GPUs per slot exclude each other: a GPU is shared, or several make one slot"
        )
    if "+" in spec and gpus_per_slot > 1:
        raise UsageError(f"--gpus {spec} says which GPUs make a set: leave out --gpus-per-slot")

    machine = _Machine((detect or find)(), outer, container)
    sets = machine.all() if spec.strip() in ("auto", "all") else machine.named(spec)
    if gpus_per_slot > 1:
        gpus = [gpu for one in sets for gpu in one]
        if len(gpus) % gpus_per_slot:
            labels = ", ".join(gpu.label for gpu in gpus)
            raise UsageError(f"{len(gpus)} GPUs ({labels}) cannot be dealt out {gpus_per_slot} to a slot")
        sets = [tuple(gpus[at : at + gpus_per_slot]) for at in range(0, len(gpus), gpus_per_slot)]
    shares = [_share(one) for one in sets]
    # Shared GPUs take turns in the list, so that the first slots to be used are on different ones.
    return [*shares] * slots_per_gpu


def shares(settings: Settings, env: Mapping[str, str]) -> list[Share]:
    """One per runner, as its worker was told. Raises UsageError."""
    return assign(
        settings.gpus,
        slots=settings.slots,
        slots_per_gpu=settings.slots_per_gpu,
        gpus_per_slot=settings.gpus_per_slot,
        outer=env.get("CUDA_VISIBLE_DEVICES"),
        container=env.get("NVIDIA_VISIBLE_DEVICES"),
    )


def _share(devices: tuple[Device, ...]) -> Share:
    part = next((device for device in devices if device.parent is not None or device.id.startswith("MIG-")), None)
    if part is not None and len(devices) > 1:
        raise UsageError(
            f"MIG instance {part.label} cannot be part of a set: CUDA shows a process one instance and nothing beside "
            "it; give it a slot of its own"
        )
    return Share(",".join(device.id for device in devices), ",".join(device.label for device in devices), devices)


def visible(mask: str) -> tuple[str, ...]:
    """The ids in a CUDA_VISIBLE_DEVICES, as CUDA reads it: what stands behind the first wrong one does not count."""
    ids: list[str] = []
    for word in mask.split(","):
        if not _IN_A_MASK.fullmatch(word.strip()):
            break
        ids.append(word.strip())
    return tuple(dict.fromkeys(ids))


class _Machine:
    """The GPUs that may be given away, in order: the machine's, or those in our own mask."""

    def __init__(self, found: Found, outer: str | None, container: str | None) -> None:
        self._why_none = found.why_none
        self._known = bool(found.devices)
        """Whether the machine says what it has; else ids are taken at their word."""
        self._devices: Sequence[Device] = found.devices
        self._where = "on this machine"
        self._masked = outer is not None
        words = [word.strip() for word in (container or "").split(",")]
        if self._known and all(map(_UUID.fullmatch, words)):
            self._devices = [device for device in map(self._within(words), found.devices) if device is not None]
            self._where = f"within NVIDIA_VISIBLE_DEVICES={container}"
        if outer is not None:
            self._devices = self._shown(visible(outer))
            self._where = f"within CUDA_VISIBLE_DEVICES={outer}"

    def all(self) -> list[tuple[Device, ...]]:
        """Each of them, or its instances. Raises UsageError."""
        if self._masked and not self._devices:
            raise UsageError(
                "--gpus auto: CUDA_VISIBLE_DEVICES hides all GPUs; unset it, or use --gpus none or --slots"
            )
        for device in self._devices:
            if device.parts == ():
                log.warning("GPU %s is left out: it is in MIG mode and has no instances", device.label)
        leaves: list[tuple[Device, ...]] = [(leaf,) for device in self._devices for leaf in device.leaves]
        if not leaves:
            why = self._why_none if not self._known else f"none {self._where} can be used"
            raise UsageError(f"--gpus auto: no GPU found ({why}); name them, or use --gpus none or --slots")
        return leaves

    def named(self, spec: str) -> list[tuple[Device, ...]]:
        """The GPUs of a list, by set. Raises UsageError."""
        sets: list[tuple[Device, ...]] = []
        taken: set[str] = set()
        for words in (part.split("+") for part in spec.split(",")):
            chosen = [self._find(word.strip(), spec) for word in words]
            for word, device in zip(words, chosen, strict=True):
                if device.parts == ():
                    raise UsageError(
                        f"GPU {device.label} is in MIG mode and has no instances: make some (nvidia-smi mig -cgi … -C) "
                        "or leave it out"
                    )
                if len(words) > 1 and device.parts is not None:
                    raise UsageError(
                        f"GPU {device.label} is in MIG mode, and its instances cannot be part of a set: CUDA shows a "
                        "process one instance and nothing beside it"
                    )
                for leaf in device.leaves:
                    if leaf.id in taken:
                        raise UsageError(
                            f"GPU {word.strip()} is named twice in --gpus {spec}; for several slots on it, use "
                            "--slots-per-gpu"
                        )
                    taken.add(leaf.id)
            sets += [tuple(chosen)] if len(words) > 1 else [(leaf,) for leaf in chosen[0].leaves]
        return sets

    def _find(self, word: str, spec: str) -> Device:
        if not _ID.fullmatch(word):
            raise UsageError(f"not a GPU: {word!r} in --gpus {spec}; {_HOW}")
        index, _, place = word.partition(":")
        if not index.isdigit():
            return self._by_id(word)
        device = self._by_index(int(index))
        if not place:
            return device
        part = f"{device.label}:{int(place)}"
        for one in device.parts or ():
            if one.label == part:
                return one
        if not self._known:
            raise UsageError(f"which MIG instance {word} is cannot be said ({self._why_none}): name it as MIG-…")
        has = ", ".join(one.label for one in device.parts or ()) or "none"
        raise UsageError(f"there is no MIG instance {word} {self._where}; GPU {device.label} has {has}")

    def _by_index(self, index: int) -> Device:
        """Within a mask a position, else the machine's own index."""
        if self._masked:
            if index < len(self._devices):
                return self._devices[index]
            raise UsageError(
                f"there is no GPU {index} {self._where}: indexes count from 0, and it shows {len(self._devices)}"
            )
        if not self._known:
            return Device(str(index), str(index))
        for device in self._devices:
            if device.label == str(index):
                return device
        # CUDA would say nothing and show the model no GPU at all.
        raise UsageError(f"there is no GPU {index} {self._where}; it has {self._listed()}")

    def _by_id(self, id: str) -> Device:
        candidates = [one for device in self._devices for one in (device, *(device.parts or ()))]
        matches = [one for one in candidates if one.id == id] or [one for one in candidates if one.id.startswith(id)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(f"GPU {id} may be any of {', '.join(one.id for one in matches)}: write more of it")
        if not self._known and not self._masked:
            return Device(id, id)
        silent = next((device for device in self._devices if device.broken is not None), None)
        if silent is not None:  # a GPU that does not answer tells no UUID either: it may be this one
            return Device(id, id, broken=f"it is not found, and GPU {silent.label} does not answer ({silent.broken})")
        near = difflib.get_close_matches(id, [one.id for one in candidates], 1)
        if near:
            hint = f"did you mean {near[0]}?"
        elif self._masked:
            hint = "name GPUs by their index in it, from 0"
        else:
            hint = f"it has {self._listed()}"
        raise UsageError(f"GPU {id} is not {'in' if self._masked else ''}{self._place()}; {hint}")

    def _place(self) -> str:
        return self._where.removeprefix("within") if self._masked else self._where

    def _listed(self) -> str:
        return ", ".join(device.label for device in self._devices) or "none"

    def _shown(self, mask: Sequence[str]) -> list[Device]:
        """The devices in a mask; as CUDA does, up to the first that is not there."""
        shown: list[Device] = []
        for word in mask:
            if not self._known:
                shown.append(Device(word, word))
                continue
            candidates = [one for device in self._devices for one in (device, *(device.parts or ()))]
            matches = [
                one for one in candidates if one.label == word or (not word.isdigit() and one.id.startswith(word))
            ]
            if len(matches) != 1:
                log.warning("CUDA_VISIBLE_DEVICES names GPU %s, which is not there: what follows is not seen", word)
                break
            if matches[0] not in shown:
                shown.append(matches[0])
        return shown

    def _within(self, words: Sequence[str]) -> Callable[[Device], Device | None]:
        """What a list of UUIDs leaves of a device."""

        def cut(device: Device) -> Device | None:
            if device.broken is not None or any(device.id.startswith(word) for word in words):
                return device
            parts = tuple(part for part in device.parts or () if any(part.id.startswith(word) for word in words))
            return device._replace(parts=parts) if parts else None

        return cut
