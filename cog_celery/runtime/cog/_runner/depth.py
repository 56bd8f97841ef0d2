"""How deep a value of JSON's types is nested. It must not know what the value is for.

Some Pythons write JSON of any depth; nobody could read it, the worker included.
"""

from __future__ import annotations

from typing import Any

MAX_LEVELS = 500


def is_too_deep(value: Any, text: str, levels: int = MAX_LEVELS) -> bool:
    """Whether lists and dicts are nested in more levels than that; `text` is the value's JSON."""
    if text.count("[") + text.count("{") <= levels:  # as good as all
        return False
    level = [value]
    for _ in range(levels):
        below = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            below += [child for child in children if isinstance(child, (dict, list, tuple))]
        if not below:
            return False
        level = below
    return True
