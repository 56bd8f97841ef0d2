"""The names that a model imports from `cog`, for the runner that this package carries in `_runner`."""

from __future__ import annotations

from .coder import Coder
from .decorators import concurrent, streaming
from .exceptions import CancelationException
from .input import FieldInfo, Input
from .model import BaseModel
from .opaque import Opaque
from .predictor import BasePredictor, BaseRunner
from .scope import current_scope, emit_metric
from .types import (
    AsyncConcatenateIterator,
    ConcatenateIterator,
    ExperimentalFeatureWarning,
    File,
    Path,
    Secret,
    URLFile,
    URLPath,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncConcatenateIterator",
    "BaseModel",
    "BasePredictor",
    "BaseRunner",
    "CancelationException",
    "Coder",
    "ConcatenateIterator",
    "ExperimentalFeatureWarning",
    "FieldInfo",
    "File",
    "Input",
    "Opaque",
    "Path",
    "Secret",
    "URLFile",
    "URLPath",
    "__version__",
    "concurrent",
    "current_scope",
    "emit_metric",
    "streaming",
]
