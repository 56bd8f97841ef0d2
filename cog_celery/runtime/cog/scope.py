"""What a model may say and ask about the prediction that runs: metrics and context.

It must not know how they travel.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Optional

from ._runner.depth import is_too_deep
from .types import ExperimentalFeatureWarning

__all__ = ["Scope", "current_scope", "emit_metric"]

MAX_NAME = 128
MAX_SEGMENTS = 4
MAX_DEPTH = 100
"""Levels of lists and dicts in one."""
MAX_BITS = 1023
"""Of a whole number: what a float can hold, since that is what becomes of it where metrics are kept."""
_SEGMENT = re.compile(r"(?!.*__)[A-Za-z](?:[A-Za-z0-9_]*[A-Za-z0-9])?\Z")
_TYPES = (bool, int, float, str, list, dict)


class Metrics(MutableMapping[str, Any]):
    """The metrics of a scope by name; setting one is record_metric() with mode `replace`."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __getitem__(self, name: str) -> Any:
        return self._scope.recorded[name]

    def record(self, name: str, value: Any, mode: str = "replace") -> None:
        """As record_metric()."""
        self._scope.record_metric(name, value, mode)

    def delete(self, name: str) -> None:
        """Forget a metric, if it is there."""
        self._scope.recorded.pop(name, None)

    def __setitem__(self, name: str, value: Any) -> None:
        self._scope.record_metric(name, value)

    def __delitem__(self, name: str) -> None:
        del self._scope.recorded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scope.recorded)

    def __len__(self) -> int:
        return len(self._scope.recorded)


class Scope:
    """One prediction's metrics and context; outside a prediction it forgets what it is told."""

    __slots__ = ("_active", "context", "recorded")

    def __init__(self, context: Mapping[str, str], active: bool = True) -> None:
        self.context = context
        self._active = active
        self.recorded: dict[str, Any] = {}

    @property
    def metrics(self) -> Metrics:
        """The metrics so far, dict-like."""
        return Metrics(self)

    def record_metric(self, name: str, value: Any, mode: str = "replace") -> None:
        """Set a metric, add to it (`incr`) or append to it (`append`); None deletes it.

        Raises ValueError for a name that is not allowed or an unknown mode, TypeError for another type than before.
        """
        _check_name(name)
        if mode not in ("replace", "incr", "append"):
            raise ValueError(f"mode of metric {name!r} must be 'replace', 'incr' or 'append', not {mode!r}")
        if not self._active:
            return
        if value is None:
            self.recorded.pop(name, None)
            return
        value = _plain(name, value)
        before = self.recorded.get(name)
        if mode == "append":
            if before is None:
                before = []
            elif not isinstance(before, list):
                raise TypeError(f"metric {name!r} is {type(before).__name__}: nothing can be appended to it")
            before.append(value)  # it is a copy of ours
            self.recorded[name] = before
            return
        if mode == "incr":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"metric {name!r} cannot be increased by {type(value).__name__}")
            if before is not None and not isinstance(before, bool) and isinstance(before, (int, float)):
                self.recorded[name] = before + value
                return
        if before is not None and type(before) is not type(value):
            raise TypeError(f"metric {name!r} is {type(before).__name__}, not {type(value).__name__}; delete it first")
        self.recorded[name] = value


def _plain(name: str, value: Any) -> Any:
    if type(value) not in _TYPES and callable(getattr(value, "item", None)):
        value = value.item()  # a number of numpy's
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(f"metric {name!r} is too large a number")
    if not isinstance(value, _TYPES):
        raise TypeError(f"metric {name!r} must be a bool, int, float, str, list or dict, not {type(value).__name__}")
    if isinstance(value, (list, dict)):
        text = json.dumps(value)  # a TypeError for what has no form in JSON
        if is_too_deep(value, text, MAX_DEPTH):
            raise ValueError(f"metric {name!r} is more than {MAX_DEPTH} levels deep")
        value = json.loads(text)  # a copy
    return value


def _check_name(name: str) -> None:
    segments = name.split(".") if isinstance(name, str) and len(name) <= MAX_NAME else [""]
    if len(segments) > MAX_SEGMENTS or not all(map(_SEGMENT.match, segments)):
        raise ValueError(
            f"metric name {str(name)[: MAX_NAME + 1]!r} is not allowed: up to {MAX_SEGMENTS} segments joined by dots, "
            f"{MAX_NAME} characters in all, each segment of letters, digits and single underscores, a letter first "
            "and a letter or digit last"
        )
    if name == "predict_time" or segments[0] == "cog":
        raise ValueError(f"metric name {name!r} is reserved")


_OUTSIDE = Scope({}, active=False)
# Where one prediction runs at a time, its threads share the scope too.
_current: Scope = _OUTSIDE
# Where several do, each has its own, and so have the tasks and threads that its context is handed to.
_in_context: ContextVar[Optional[Scope]] = ContextVar("cog_scope", default=None)
_warned = False


def current_scope() -> Scope:
    """The scope of the prediction that runs; outside one, a scope that does nothing."""
    return _in_context.get() or _current


def enter_scope(scope: Optional[Scope]) -> None:
    """Make a scope the current one; None: no prediction runs."""
    global _current
    _current = _OUTSIDE if scope is None else scope


def enter_scope_in_context(scope: Scope) -> None:
    """Make a scope the current one of this context, and of those that are copied from it."""
    _in_context.set(scope)


def emit_metric(name: str, value: Any) -> None:
    """Set a metric of the prediction that runs. current_scope().record_metric() is its successor."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "emit_metric() is the old name of current_scope().record_metric()", ExperimentalFeatureWarning, stacklevel=2
        )
    current_scope().record_metric(name, value)
