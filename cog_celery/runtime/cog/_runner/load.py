"""Finds the predictor in the model's folder, imports and makes it, and runs its setup().

It must not know about predictions.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import typing
from typing import Any, Callable, Optional

from ..decorators import MAX_ATTRIBUTE
from ..predictor import BasePredictor
from ..types import Path, URLPath
from .config import FILE, Config, read_config
from .failures import model_frames
from .fetching import scheme_of
from .functions import class_place, is_async, static_attribute, unwrap
from .refusal import Refused
from .signature import Signature, inspect_predict, inspect_setup
from .standard import import_standard

METHODS = ("predict", "run")
MAX_VARIABLE = "COG_MAX_CONCURRENCY"
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


class Predictor:
    """A predictor that was made. `call` takes the inputs by name; the others are None where there is none.

    `concurrency` is the number of predictions that it can serve at once; `in_loop` whether they are to run in an event
    loop that goes on between them.
    """

    __slots__ = ("call", "concurrency", "healthcheck", "in_loop", "setup", "signature", "test_inputs")

    def __init__(self, signature: Signature, call: Callable[..., Any]) -> None:
        self.signature = signature
        self.call = call
        self.setup: Optional[Callable[[], Any]] = None
        self.healthcheck: Optional[Callable[[], Any]] = None
        self.test_inputs: Any = None
        """A dict, or what returns one."""
        self.concurrency = 1
        self.in_loop = is_async(call)


def load_predictor(
    model_dir: str, reference: Optional[str], before_making: Callable[[Signature], object] = lambda signature: None
) -> Predictor:
    """Import and make the predictor. `reference` is `file.py:Name`; None: what cog.yaml says.

    `before_making` is called when the predictor was inspected and is about to be made. Changes the process: working
    directory, sys.path, sys.argv. Raises Refused, or whatever the model's own code raises.
    """
    os.chdir(model_dir)
    folder = os.getcwd()
    config: Optional[Config] = None
    if reference is None:
        config = _read_config(folder)
        reference = config.predict
    line = config.line if config else None
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
    predictor = _make(getattr(module, found[0]), f"{_stem(file_name)}.{found[0]}", file_name, before_making)
    if predictor.test_inputs is None:
        predictor.test_inputs = getattr(module, "test_inputs", None)
    predictor.concurrency = _concurrency(predictor, config)
    if config is not None and config.train_line is not None:
        predictor.signature.notes.append(
            f"{FILE}:{config.train_line}: training is not supported: `train` is passed over, predictions run"
        )
    return predictor


def _read_config(folder: str) -> Config:
    try:
        with open(FILE, encoding="utf-8") as file:
            return read_config(file.read())
    except FileNotFoundError:
        raise Refused(
            f"{FILE} not found in {folder}",
            'write one with predict: "predict.py:Predictor", or name another folder',
        ) from None
    except UnicodeDecodeError as error:
        raise Refused(f"{FILE} is not UTF-8: {error}", "save it as UTF-8", FILE) from None


def _concurrency(predictor: Predictor, config: Optional[Config]) -> int:
    """How many predictions may run at once: by the environment, by @concurrent, by cog.yaml; the first that says so."""
    function = predictor.signature.function
    marked = getattr(predictor.call, MAX_ATTRIBUTE, None)
    given = os.environ.get(MAX_VARIABLE, "")
    if given:
        if not given.isdigit() or int(given) < 1:
            raise Refused(f"{MAX_VARIABLE} is {given!r}", "set it to a whole number of 1 or more, or not at all")
        maximum, said, file, line = int(given), MAX_VARIABLE, function.file, function.line
    elif marked is not None:
        return int(marked)  # the decorator has seen that it is async
    elif config is not None:
        maximum, said, file, line = config.max_concurrency, "concurrency.max", FILE, config.concurrency_line
    else:
        return 1
    if maximum > 1 and not predictor.signature.is_async:
        raise Refused(
            f"{said} is {maximum}, but {function.shown} is not async",
            f"write async def {function.name}(…), or take it out: a worker runs several slots, each with a process",
            file,
            line,
        )
    return maximum


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
        where = import_standard("traceback").extract_tb(model_frames(error))
        place = (os.path.relpath(where[0].filename), where[0].lineno) if where else (file_name, None)
        raise Refused(str(error), f"add {needed} to the model's requirements: Cog used to bring it", *place) from error
    return module


def _make(target: Any, shown: str, file_name: str, before_making: Callable[[Signature], object]) -> Predictor:
    if isinstance(unwrap(target), types.FunctionType):
        signature = inspect_predict(target, "predict", method=False)
        before_making(signature)
        return Predictor(signature, target)
    if not isinstance(target, type):
        raise Refused(f"invalid predictor {shown}", "name a class or a function", file_name, None)
    if not issubclass(target, BasePredictor):
        raise Refused(
            f"predictor {shown} does not inherit cog.BasePredictor",
            f"write class {target.__name__}(BasePredictor)",
            *class_place(target),
        )
    present = [method for method in METHODS if static_attribute(target, method) is not None]
    if not present:
        raise Refused("predict method not found", "write def predict(self, …) in the class", *class_place(target))
    if len(present) == 2:
        raise Refused("both predict() and run() are defined", "keep one of them", *class_place(target))
    try:
        return _make_class(target, present[0], before_making)
    except Refused as refused:
        if refused.file is None:  # what is no function has no place of its own
            refused.file, refused.line = class_place(target)
        raise


def _make_class(target: Any, method: str, before_making: Callable[[Signature], object]) -> Predictor:
    signature = inspect_predict(static_attribute(target, method), method, method=True)
    setup = static_attribute(target, "setup")
    has_setup = setup is not BasePredictor.setup
    takes_weights, annotation = inspect_setup(setup, signature) if has_setup else (False, None)
    before_making(signature)
    made = target()
    predictor = Predictor(signature, getattr(made, method))
    if takes_weights:
        weights = find_weights(annotation)
        predictor.setup = lambda: made.setup(weights=weights)
    elif has_setup:
        predictor.setup = made.setup
    predictor.healthcheck = getattr(made, "healthcheck", None)
    predictor.test_inputs = _test_inputs(target, made)
    return predictor


def _test_inputs(target: type, made: Any) -> Any:
    """The class's test_inputs, bound unless it takes no argument."""
    static = static_attribute(target, "test_inputs")
    if isinstance(static, types.FunctionType) and static.__code__.co_argcount == 0:
        return static
    return getattr(made, "test_inputs", None)


def find_weights(annotation: Any) -> Any:
    """What setup() gets: $COG_WEIGHTS, else the folder ./weights, else None; as text where a str is declared.

    Raises OSError for a URL that cannot be fetched.
    """
    found = os.environ.get("COG_WEIGHTS") or ("weights" if os.path.exists("weights") else None)
    if found is None:
        return None
    members = typing.get_args(annotation) or (annotation,)
    if str in members and Path not in members:
        return found
    if scheme_of(found) not in ("http", "https"):
        return Path(found)
    try:
        return URLPath(source=found).convert()
    except OSError as error:
        raise OSError(f"the weights that COG_WEIGHTS names cannot be fetched: {error}") from None
