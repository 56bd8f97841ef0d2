"""What the model's exceptions are to people: a text, a traceback, an exit code.

It must not know where in a prediction they were raised.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Callable, NoReturn, Optional

from .process import flush_streams, write_error
from .standard import import_standard

# Where frames come from that are not the model's: the runner, Python's imports and its event loop.
_NOT_THE_MODEL = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep,
    "<frozen importlib",
)


def describe(error: BaseException) -> str:
    """An exception's own text, or its repr when that is empty or cannot be had."""
    try:
        return str(error) or repr(error)
    except Exception:  # of the exception's own __str__
        return type(error).__name__


def show(error: BaseException, write: Callable[[str], object] = write_error) -> None:
    """Write an exception's traceback, from the model's first frame on, to standard error."""
    lines = import_standard("traceback").format_exception(type(error), error, model_frames(error))
    write("".join(lines))


def model_frames(error: BaseException) -> Optional[types.TracebackType]:
    """An exception's traceback from the model's first frame on."""
    trace = error.__traceback__
    while trace is not None and not is_models(trace.tb_frame):
        trace = trace.tb_next
    return trace


def is_models(frame: types.FrameType) -> bool:
    """Whether a frame is the model's, or of what it calls."""
    return not frame.f_code.co_filename.startswith(_NOT_THE_MODEL)


def exit_as(exit: SystemExit) -> NoReturn:
    """End the process as sys.exit() says, at once: what the model's threads still do is of no use to anybody."""
    code = exit.code
    flush_streams()
    if code is not None and not isinstance(code, int):
        write_error(f"{code}\n")
        code = 1
    sys.stdout.flush()
    os._exit((code or 0) & 0xFF)
