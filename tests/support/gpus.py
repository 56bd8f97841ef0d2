"""A machine with GPUs, of which a file tells: what NVML says of it to processes that are started with its variables.

It must not know who asks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.processes import wait_until

FOLDER = Path(__file__).with_name("nvml")
ROOT = Path(__file__).parents[2]
XID, DOUBLE_BIT = 8, 2
"""Types of events."""
NO_INSTANCE = 0xFFFFFFFF


class Machine:
    """`parts`: for each GPU its MIG instances' places, None for one that is whole."""

    def __init__(self, folder: Path, *parts: tuple[int, ...] | None) -> None:
        self.file = folder / "nvml.json"
        self.state: dict[str, Any] = {"driver": True, "gpus": [], "events": []}
        for index, places in enumerate(parts):
            mine = None
            if places is not None:
                mine = [{"place": place, "uuid": f"MIG-{index}{place}aa-0000"} for place in places]
            gpu = {"uuid": uuid(index), "parts": mine, "error": None, "action": None, "used": 3 << 30, "old": False}
            self.state["gpus"].append(gpu)
        self.write()

    def write(self) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.state))
        os.replace(temporary, self.file)

    def change(self, index: int, **fields: object) -> None:
        """`error`: what every call about this GPU fails with, NVML_ERROR_… without these words; `action`: what its
        driver recommends; `old`: without events and MIG.
        """
        self.state["gpus"][index].update(fields)
        self.write()

    def event(self, index: int, data: int, kind: int = XID, instance: int = NO_INSTANCE) -> None:
        """This happens on that GPU now."""
        one = {"uuid": uuid(index), "kind": kind, "data": data, "instance": instance}
        self.state["events"].append(one)
        self.write()

    def wait_listening(self, *indexes: int) -> None:
        """Until a process waits for events of these GPUs and no others."""
        file = self.file.with_suffix(".json.listening")
        wanted = [uuid(index) for index in indexes]
        wait_until(lambda: file.exists() and json.loads(file.read_text()) == wanted, f"events of {indexes}")

    @property
    def variables(self) -> Mapping[str, str]:
        """Of a worker on this machine."""
        return {"PYTHONPATH": f"{FOLDER}{os.pathsep}{ROOT}", "FAKE_NVML": str(self.file)}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Be this process's machine; its NVML."""
        monkeypatch.setenv("FAKE_NVML", str(self.file))
        spec = importlib.util.spec_from_file_location("pynvml", FOLDER / "pynvml.py")
        assert spec is not None and spec.loader is not None
        nvml: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nvml)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml


def uuid(index: int) -> str:
    return f"GPU-{index}aaaaaaa-0000-1111-2222-333333333333"


def without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process finds no nvidia-ml-py."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
