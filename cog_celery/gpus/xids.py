"""What the numbers mean by which NVIDIA's driver reports that something went wrong.

It must not know how they come.
"""

from __future__ import annotations

from typing import Final

HARMLESS: Final = frozenset({13, 31, 43, 45, 63, 68, 92, 94, 109, 121, 137, 154})
"""Xids that end what ran, or nothing: the GPU itself goes on. 154 says that its recovery action changed, which is
looked at anyway."""
DOUBLE_BIT: Final = "a memory error that could not be corrected"
_NAMES: Final = {
    48: DOUBLE_BIT,
    62: "its microcontroller halted",
    64: "memory rows could not be remapped",
    74: "an NVLink error",
    79: "it has fallen off the bus",
    95: "a memory error that was not contained",
    119: "its system processor does not answer",
    120: "its system processor failed",
    140: DOUBLE_BIT,
}


def described(number: int) -> str:
    """It, for people; of most nothing is known but the number."""
    return f"Xid {number}" + (f", {_NAMES[number]}" if number in _NAMES else "")
