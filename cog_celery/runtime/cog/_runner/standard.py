"""Modules of Python's own that the runner needs only now and then: imported when they are needed.

It must not be used for anything of the model's. A runner that does without a module starts sooner and stays smaller.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def import_standard(name: str) -> Any:
    """Import a module of Python's own, although the model's folder may hold a file called like something it imports."""
    known = sys.modules.get(name)
    if known is not None:
        return known
    path = sys.path[:]
    here = os.getcwd()
    sys.path[:] = [entry for entry in path if entry and os.path.abspath(entry) != here]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
