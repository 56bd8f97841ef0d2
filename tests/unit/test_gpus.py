"""What each slot sees in CUDA_VISIBLE_DEVICES, with and without a mask around us, and how GPUs are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cog_celery import gpus
from cog_celery.errors import UsageError
from cog_celery.gpus import Found, assign, parse_listing, visible


def machine(*ids: str) -> Callable[[], Found]:
    return lambda: Found(ids, "" if ids else "nobody has one")


NO_GPUS = machine()


@pytest.mark.parametrize("outer", [None, "0", ""])
def test_without_a_spec_the_environment_stays_as_it_is(outer: str | None) -> None:
    assert assign(None, slots=3, outer=outer) == [None, None, None]


def test_none_hides_all_gpus_from_every_slot() -> None:
    assert assign("none", slots=2, outer="0,1") == ["", ""]


@pytest.mark.parametrize(
    ("spec", "outer", "expected"),
    [
        ("0,1", None, ["0", "1"]),
        (" 1 , 0 ", None, ["1", "0"]),
        ("0,1", "2,3", ["2", "3"]),
        ("1", "2,3", ["3"]),
        ("1,0", "GPU-aa,MIG-bb", ["MIG-bb", "GPU-aa"]),
        ("GPU-aa", None, ["GPU-aa"]),
        ("GPU-aa", "GPU-bb,GPU-aa", ["GPU-aa"]),
        ("MIG-GPU-1f/1/0,MIG-22", None, ["MIG-GPU-1f/1/0", "MIG-22"]),
        ("auto", "5,2", ["5", "2"]),
    ],
)
def test_a_slot_gets_its_gpu_within_the_mask_around_us(spec: str, outer: str | None, expected: list[str]) -> None:
    assert assign(spec, slots=1, outer=outer, detect=NO_GPUS) == expected


def test_slots_per_gpu_go_round_the_gpus() -> None:
    assert assign("0,1", slots=1, slots_per_gpu=2, outer="2,3") == ["2", "3", "2", "3"]


def test_gpus_per_slot_stay_in_order() -> None:
    assert assign("3,1,2,0", slots=1, gpus_per_slot=2, detect=NO_GPUS) == ["3,1", "2,0"]


def test_auto_takes_all_that_are_found() -> None:
    assert assign("auto", slots=1, detect=machine("0", "MIG-a", "MIG-b")) == ["0", "MIG-a", "MIG-b"]


@pytest.mark.parametrize(
    ("spec", "outer", "message"),
    [
        ("auto", None, r"no GPU found \(nobody has one\)"),
        ("auto", "", "CUDA_VISIBLE_DEVICES hides all GPUs"),
        ("auto", "-1", "CUDA_VISIBLE_DEVICES hides all GPUs"),
        ("2", "2,3", "there is no GPU 2 within CUDA_VISIBLE_DEVICES=2,3"),
        ("0", "", "there is no GPU 0 within CUDA_VISIBLE_DEVICES="),
        ("GPU-aa", "GPU-bb", "GPU GPU-aa is not in CUDA_VISIBLE_DEVICES=GPU-bb"),
        ("GPU-aa", "0,1", "name GPUs by their index in it"),
        ("1,1", None, "GPU 1 is named twice"),
        ("1,01", None, "GPU 01 is named twice"),
        ("0,GPU-aa", "GPU-aa", "GPU GPU-aa is named twice"),
        ("", None, "not a GPU: ''"),
        ("0,", None, "not a GPU: ''"),
        ("-1", None, "not a GPU: '-1'"),
        ("0;1", None, "not a GPU: '0;1'"),
        ("all", None, "not a GPU: 'all'"),
        ("0\n", "0\n1", "there is no GPU 0 within"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, outer: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assign(spec, slots=1, outer=outer, detect=NO_GPUS)


def test_an_index_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no GPU 7 on this machine; it has 0, 1"):
        assign("0,7", slots=1, detect=machine("0", "1"))


def test_an_index_is_not_judged_where_gpus_are_split() -> None:
    assert assign("1", slots=1, detect=machine("0", "MIG-a")) == ["1"]


def test_gpus_that_do_not_fill_the_last_slot_are_refused() -> None:
    with pytest.raises(UsageError, match=r"3 GPUs .* cannot be dealt out 2 to a slot"):
        assign("0,1,2", slots=1, gpus_per_slot=2, detect=NO_GPUS)


def test_sharing_and_joining_gpus_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        assign("0,1", slots=1, slots_per_gpu=2, gpus_per_slot=2, detect=NO_GPUS)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("", ()), ("0", ("0",)), ("0, 1", ("0", "1")), ("0,-1,1", ("0",)), ("NoDevFiles", ()), ("0,,1", ("0",))],
)
def test_a_mask_is_read_as_cuda_reads_it(mask: str, expected: tuple[str, ...]) -> None:
    assert visible(mask) == expected


def test_a_listing_names_whole_gpus_by_index_and_split_ones_by_their_parts() -> None:
    listing = """\
GPU 0: NVIDIA H200 (UUID: GPU-1b0a)
GPU 1: NVIDIA H200 (UUID: GPU-2c1b)
  MIG 3g.71gb     Device  0: (UUID: MIG-aaaa-1)
  MIG 3g.71gb     Device  1: (UUID: MIG-bbbb-2)
GPU 2: NVIDIA H200 (UUID: GPU-3d2c)
"""
    assert parse_listing(listing) == ("0", "MIG-aaaa-1", "MIG-bbbb-2", "2")


class NvmlError(Exception):
    pass


class NotSupported(NvmlError):
    pass


class NotFound(NvmlError):
    pass


class FakeNvml(ModuleType):
    """Three GPUs: one that cannot be split, one that could be, one split in two of four places."""

    NVMLError = NvmlError
    NVMLError_NotSupported = NotSupported
    NVMLError_NotFound = NotFound
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken = broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NvmlError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMigMode(self, gpu: int) -> tuple[int, int]:
        if gpu == 0:
            raise NotSupported("Not Supported")
        return gpu - 1, gpu - 1

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: int) -> int:
        return 4

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: int, place: int) -> Any:
        if place % 2:
            raise NotFound("Not Found")
        return f"MIG-{gpu}-{place}"

    def nvmlDeviceGetUUID(self, device: str) -> bytes:
        return device.encode()


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_nvml_is_asked_first_and_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpus.find().ids == ("0", "1", "MIG-2-0", "MIG-2-2")
    assert nvml.open == 0


def test_nvidia_smi_is_asked_where_nvml_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1b0a)'")
    assert gpus.find().ids == ("0",)


def test_where_nothing_is_found_each_way_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    fake_nvidia_smi(tmp_path, monkeypatch, "exit 9")
    found = gpus.find()
    assert found.ids == ()
    assert "NVML: Driver Not Loaded; nvidia-smi: " in found.why_none
    assert "exit status 9" in found.why_none
