"""Finds the predictor in the model's folder, imports and makes it, and runs its setup().

It must not know about predictions.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from typing import Any, Callable, Optional

from ..predictor import BasePredictor
from ..types import Path
from .config import FILE, read_config
from .refusal import Refused
from .signature import Signature, inspect_predict, inspect_setup

METHODS = ("predict", "run")
DEFAULT_NAMES = ("Runner", "Predictor")
# What Cog brought along for every model: the import's name, and what to require for it.
ONCE_BROUGHT = {
    "attr": "attrs",
    "attrs": "attrs",
    "fastapi": "fastapi",
    "pydantic": "pydantic",
    "requests": "requests",
    "structlog": "structlog",
    "typing_extensions": "typing_extensions",
    "uvicorn": "uvicorn",
    "yaml": "PyYAML",
}
# Where frames come from that are not the model's: the runner, Python's imports and its event loop.
_NOT_THE_MODEL = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep,
    "<frozen importlib",
)


class Predictor:
    """A predictor that was made. `call` takes the inputs by name; `setup` is None where there is none."""

    __slots__ = ("call", "setup", "signature")

    def __init__(self, signature: Signature, call: Callable[..., Any], setup: Optional[Callable[[], Any]]) -> None:
        self.signature = signature
        self.call = call
        self.setup = setup


def load_predictor(model_dir: str, reference: Optional[str]) -> Predictor:
    """Import and make the predictor. `reference` is `file.py:Name`; None: what cog.yaml says.

    Changes the process: working directory, sys.path, sys.argv. Raises Refused, or whatever the model's own code raises.
    """
    os.chdir(model_dir)
    folder = os.getcwd()
    line: Optional[int] = None
    if reference is None:
        try:
            with open(FILE, encoding="utf-8") as file:
                config = read_config(file.read())
        except FileNotFoundError:
            raise Refused(
                f"{FILE} not found in {folder}",
                'write one with predict: "predict.py:Predictor", or name another folder',
            ) from None
        except UnicodeDecodeError as error:
            raise Refused(f"{FILE} is not UTF-8: {error}", "save it as UTF-8", FILE) from None
        reference, line = config.predict, config.line
    file_name, _, name = reference.partition(":")
    if not file_name.endswith(".py") or not os.path.isfile(file_name):
        raise Refused(
            f"predictor not found: {reference}",
            f"{file_name} is no Python file in {folder}; name one that is",
            FILE,
            line,
        )
    sys.path.insert(0, folder)
    sys.argv[:] = [file_name]
    module = _import(file_name)
    names = (name,) if name else DEFAULT_NAMES
    found = [candidate for candidate in names if hasattr(module, candidate)]
    if not found:
        raise Refused(
            f"predictor not found: {_stem(file_name)}.{name or ' or '.join(DEFAULT_NAMES)}",
            f"define it in {file_name}, or name another one in {FILE}",
            FILE if line else file_name,
            line,
        )
    return _make(getattr(module, found[0]), f"{_stem(file_name)}.{found[0]}", file_name)


def _stem(file_name: str) -> str:
    return os.path.splitext(os.path.basename(file_name))[0]


def _import(file_name: str) -> types.ModuleType:
    name = _stem(file_name)
    if name in sys.modules:  # one of Python's own, which others need under its name
        name = f"cog_model_{name}"
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(file_name))
    assert spec is not None and spec.loader is not None, file_name
    module = importlib.util.module_from_spec(spec)
    # Known by its name, so that what it defines can be pickled.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        needed = ONCE_BROUGHT.get((error.name or "").partition(".")[0])
        if needed is None:
            raise
        where = traceback.extract_tb(model_frames(error))
        place = (os.path.relpath(where[0].filename), where[0].lineno) if where else (file_name, None)
        raise Refused(str(error), f"add {needed} to the model's requirements: Cog used to bring it", *place) from error
    return module


def _make(target: Any, shown: str, file_name: str) -> Predictor:
    if inspect.isfunction(inspect.unwrap(target) if callable(target) else target):
        return Predictor(inspect_predict(target, "predict", method=False), target, None)
    if not isinstance(target, type):
        raise Refused(f"invalid predictor {shown}", "name a class or a function", file_name, None)
    line = _class_line(target)
    if not issubclass(target, BasePredictor):
        raise Refused(
            f"predictor {shown} does not inherit cog.BasePredictor",
            f"write class {target.__name__}(BasePredictor)",
            file_name,
            line,
        )
    present = [method for method in METHODS if hasattr(target, method)]
    if not present:
        raise Refused("predict method not found", "write def predict(self, …) in the class", file_name, line)
    if len(present) == 2:
        raise Refused("both predict() and run() are defined", "keep one of them", file_name, line)
    method = present[0]
    signature = inspect_predict(inspect.getattr_static(target, method), method, method=True)
    setup = inspect.getattr_static(target, "setup")
    takes_weights, annotation = (False, None) if setup is BasePredictor.setup else inspect_setup(setup)
    predictor = target()
    if setup is BasePredictor.setup:
        return Predictor(signature, getattr(predictor, method), None)
    if not takes_weights:
        return Predictor(signature, getattr(predictor, method), predictor.setup)
    weights = find_weights(annotation)
    return Predictor(signature, getattr(predictor, method), lambda: predictor.setup(weights=weights))  # type: ignore[call-arg]


def find_weights(annotation: Any) -> Any:
    """What setup() gets: $COG_WEIGHTS, as its annotation says, else the folder ./weights, else None."""
    url = os.environ.get("COG_WEIGHTS")
    if url:
        return url if annotation is str else Path(url)
    if os.path.exists("weights"):
        return "weights" if annotation is str else Path("weights")
    return None


def _class_line(target: type) -> Optional[int]:
    try:
        return inspect.getsourcelines(target)[1]
    except (OSError, TypeError):
        return None


def model_frames(error: BaseException) -> Optional[types.TracebackType]:
    """An exception's traceback from the model's first frame on."""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(_NOT_THE_MODEL):
            break
        trace = trace.tb_next
    return trace
