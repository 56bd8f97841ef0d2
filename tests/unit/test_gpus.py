"""What each slot sees in CUDA_VISIBLE_DEVICES, with and without a mask around us, and how GPUs are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cog_celery.errors import UsageError
from cog_celery.gpus import assigning
from cog_celery.gpus.assigning import Share, visible
from cog_celery.gpus.finding import Device, Found, find, parse_listing
from cog_celery.producer import checking
from cog_celery.settings import Settings
from tests.support.gpus import Machine, uuid, without_nvml

NO_GPUS = Found((), "nobody has one")


def assign(
    spec: str | None,
    *,
    slots: int = 1,
    slots_per_gpu: int = 1,
    gpus_per_slot: int = 1,
    outer: str | None = None,
    container: str | None = None,
    detect: Callable[[], Found] = lambda: NO_GPUS,
) -> list[str | None]:
    """What each slot sees."""
    return [share.visible for share in shares(spec, slots, slots_per_gpu, gpus_per_slot, outer, container, detect)]


def shares(
    spec: str | None,
    slots: int = 1,
    slots_per_gpu: int = 1,
    gpus_per_slot: int = 1,
    outer: str | None = None,
    container: str | None = None,
    detect: Callable[[], Found] = lambda: NO_GPUS,
) -> list[Share]:
    return assigning.assign(
        spec,
        slots=slots,
        slots_per_gpu=slots_per_gpu,
        gpus_per_slot=gpus_per_slot,
        outer=outer,
        container=container,
        detect=detect,
    )


def whole(index: int) -> Device:
    return Device(str(index), f"GPU-{index}abc-1")


def split(index: int, *places: int) -> Device:
    id = f"GPU-{index}abc-1"
    parts = tuple(Device(f"{index}:{place}", f"MIG-{index}{place}de-1", parent=id) for place in places)
    return Device(str(index), id, parts=parts)


def machine(*devices: Device) -> Callable[[], Found]:
    return lambda: Found(devices)


FOUR = machine(*map(whole, range(4)))
MIXED = machine(whole(0), split(1, 0, 2), whole(2), split(3))


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
    assert assign(spec, outer=outer) == expected


def test_slots_per_gpu_go_round_the_gpus() -> None:
    assert assign("0,1", slots_per_gpu=2, outer="2,3") == ["2", "3", "2", "3"]


def test_gpus_per_slot_stay_in_order() -> None:
    assert assign("3,1,2,0", gpus_per_slot=2) == ["3,1", "2,0"]


def test_auto_takes_all_that_are_found_by_uuid_and_instances_for_gpus_in_mig_mode() -> None:
    found = shares("auto", detect=MIXED)
    assert [share.visible for share in found] == ["GPU-0abc-1", "MIG-10de-1", "MIG-12de-1", "GPU-2abc-1"]
    assert [share.label for share in found] == ["0", "1:0", "1:2", "2"]
    assert shares("all", detect=MIXED) == found


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("2,0", ["GPU-2abc-1", "GPU-0abc-1"]),
        ("GPU-2abc-1", ["GPU-2abc-1"]),
        ("GPU-2", ["GPU-2abc-1"]),
        ("1", ["MIG-10de-1", "MIG-12de-1"]),
        ("GPU-1abc-1", ["MIG-10de-1", "MIG-12de-1"]),
        ("1:2,0", ["MIG-12de-1", "GPU-0abc-1"]),
        ("MIG-12", ["MIG-12de-1"]),
        ("0+2", ["GPU-0abc-1,GPU-2abc-1"]),
    ],
)
def test_what_is_named_is_given_by_uuid_where_the_machine_says_what_it_has(spec: str, expected: list[str]) -> None:
    assert assign(spec, detect=MIXED) == expected


def test_sets_may_be_of_any_size_and_are_shown_as_people_know_their_gpus() -> None:
    assert [(share.label, len(share.devices)) for share in shares("3+1,0", detect=FOUR)] == [("3,1", 2), ("0", 1)]
    assert assign("0+1,2", outer="4,5,6") == ["4,5", "6"]


@pytest.mark.parametrize(
    ("outer", "spec", "expected"),
    [
        ("2,0", "auto", ["GPU-2abc-1", "GPU-0abc-1"]),
        ("2,0", "1", ["GPU-0abc-1"]),
        ("GPU-2", "auto", ["GPU-2abc-1"]),
        ("1", "auto", ["MIG-10de-1", "MIG-12de-1"]),
        ("MIG-12de-1", "0", ["MIG-12de-1"]),
        ("0,9,2", "auto", ["GPU-0abc-1"]),
        ("0,0", "auto", ["GPU-0abc-1"]),
    ],
)
def test_a_mask_around_us_is_looked_up_on_the_machine(outer: str, spec: str, expected: list[str]) -> None:
    assert assign(spec, outer=outer, detect=MIXED) == expected


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ("GPU-2abc-1", ["GPU-2abc-1"]),
        ("MIG-12de-1,GPU-0abc-1", ["GPU-0abc-1", "MIG-12de-1"]),
        ("void", ["GPU-0abc-1", "MIG-10de-1", "MIG-12de-1", "GPU-2abc-1"]),
        ("all", ["GPU-0abc-1", "MIG-10de-1", "MIG-12de-1", "GPU-2abc-1"]),
        ("3", ["GPU-0abc-1", "MIG-10de-1", "MIG-12de-1", "GPU-2abc-1"]),
        ("", ["GPU-0abc-1", "MIG-10de-1", "MIG-12de-1", "GPU-2abc-1"]),
    ],
)
def test_what_a_container_was_promised_by_uuid_is_all_it_takes(container: str, expected: list[str]) -> None:
    """Even where it sees more, as a privileged one does; indexes have been heeded before, and mean others inside."""
    assert assign("auto", container=container, detect=MIXED) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0,7", "there is no GPU 7 on this machine; it has 0, 1, 2, 3"),
        ("1:1", "there is no MIG instance 1:1 on this machine; GPU 1 has 1:0, 1:2"),
        ("0:0", "there is no MIG instance 0:0 on this machine; GPU 0 has none"),
        ("GPU-0abd-1", r"GPU GPU-0abd-1 is not on this machine; did you mean GPU-0abc-1\?"),
        ("GPU-zz", "is not on this machine; it has 0, 1, 2, 3"),
        ("MIG-1", "may be any of MIG-10de-1, MIG-12de-1"),
        ("3", "GPU 3 is in MIG mode and has no instances"),
        ("0+1", "GPU 1 is in MIG mode, and its instances cannot be part of a set"),
        ("0+1:0", "MIG instance 1:0 cannot be part of a set"),
        ("1,1:0", "GPU 1:0 is named twice"),
        ("0,GPU-0abc-1", "GPU GPU-0abc-1 is named twice"),
        ("0+0", "GPU 0 is named twice"),
        ("0+", "not a GPU: ''"),
    ],
)
def test_what_the_machine_does_not_have_or_cannot_do_is_refused_with_what_it_has(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assign(spec, detect=MIXED)


def test_instances_are_not_dealt_out_together() -> None:
    with pytest.raises(UsageError, match="MIG instance 1:0 cannot be part of a set"):
        assign("auto", gpus_per_slot=2, detect=MIXED)
    with pytest.raises(UsageError, match="MIG instance MIG-b cannot be part of a set"):
        assign("GPU-a,MIG-b", gpus_per_slot=2)


def test_sets_are_said_once() -> None:
    with pytest.raises(UsageError, match="leave out --gpus-per-slot"):
        assign("0+1,2+3", gpus_per_slot=2, detect=FOUR)


def test_a_machine_whose_gpus_have_no_instances_has_nothing_for_auto() -> None:
    with pytest.raises(UsageError, match="no GPU found"):
        assign("auto", detect=machine(split(0)))


def test_a_gpu_that_does_not_answer_has_a_slot_all_the_same() -> None:
    """It is out, and the others serve: a worker that is started again is not refused for one of them."""
    silent = Device("1", "1", broken="NVML: GPU is lost")
    two = machine(whole(0), silent)
    for spec in ("auto", "0,1"):
        assert [share.devices for share in shares(spec, detect=two)] == [(whole(0),), (silent,)]
    [share] = shares("GPU-1abc-1", detect=two)  # its UUID cannot be known
    assert share.visible == "GPU-1abc-1" and share.devices[0].broken is not None


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
        ("every", None, "not a GPU: 'every'"),
        ("0:1", None, r"which MIG instance 0:1 is cannot be said \(nobody has one\)"),
        ("0\n", "0\n1", "there is no GPU 0 within"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, outer: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        assign(spec, outer=outer)


def test_gpus_that_do_not_fill_the_last_slot_are_refused() -> None:
    with pytest.raises(UsageError, match=r"3 GPUs .* cannot be dealt out 2 to a slot"):
        assign("0,1,2", gpus_per_slot=2)


def test_sharing_and_joining_gpus_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        assign("0,1", slots_per_gpu=2, gpus_per_slot=2)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("", ()),
        ("0", ("0",)),
        ("0, 1", ("0", "1")),
        ("0,-1,1", ("0",)),
        ("NoDevFiles", ()),
        ("0,,1", ("0",)),
        ("1,1", ("1",)),
    ],
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
    plain, parts, last = parse_listing(listing)
    assert plain == Device("0", "GPU-1b0a") and last == Device("2", "GPU-3d2c")
    assert parts.parts == (
        Device("1:0", "MIG-aaaa-1", parent="GPU-2c1b"),
        Device("1:1", "MIG-bbbb-2", parent="GPU-2c1b"),
    )


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_nvml_is_asked_first_and_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, None, None, (0, 2))
    machine.change(0, old=True)
    nvml = machine.install(monkeypatch)
    found = find().devices
    assert [device.id for device in found] == [uuid(0), uuid(1), uuid(2)]
    assert [leaf.id for device in found for leaf in device.leaves] == [
        *(uuid(0), uuid(1)),
        *("MIG-20aa-0000", "MIG-22aa-0000"),
    ]
    assert nvml.sessions == 0


def test_a_gpu_that_is_lost_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, None, None)
    machine.change(0, error="GPU_IS_LOST")
    machine.install(monkeypatch)
    silent, well = find().devices
    assert silent == Device("0", "0", broken="NVML: GPU is lost") and well.id == uuid(1)


def test_nvidia_smi_is_asked_where_nvml_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_nvml(monkeypatch)
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1b0a)'")
    assert find().devices == (Device("0", "GPU-1b0a"),)


def test_where_nothing_is_found_each_way_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    machine.state["driver"] = False
    machine.write()
    machine.install(monkeypatch)
    fake_nvidia_smi(tmp_path, monkeypatch, "exit 9")
    found = find()
    assert found.devices == ()
    assert "NVML: NVML Shared Library Not Found; nvidia-smi: " in found.why_none
    assert "exit status 9" in found.why_none


def test_a_check_says_which_slots_there_would_be_and_which_gpu_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, None, (0, 1))
    machine.install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = Settings.load({"gpus": "auto"}, {})
    assert checking._gpus(told).found == "3 slots: 0, 1:0, 1:1"
    assert checking._gpus(Settings.load({}, {})).found == "0, 1:0, 1:1; --gpus auto makes a slot of each"
    machine.change(0, error="GPU_IS_LOST")
    finding = checking._gpus(told)
    assert (finding.verdict, finding.found) == ("warn", "GPU 0 does not answer: NVML: GPU is lost")
    assert checking._gpus(Settings.load({"gpus": "5"}, {})).verdict == "fail"
