"""What a model may write above its predict().

It must not know how predictions are run.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, TypeVar, Union, overload

from ._runner.functions import is_async

__all__ = ["concurrent", "streaming"]

MAX_ATTRIBUTE = "__cog_concurrent_max__"

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


@overload
def streaming(function: AnyFunction) -> AnyFunction: ...
@overload
def streaming(function: None = None) -> Callable[[AnyFunction], AnyFunction]: ...


def streaming(function: Optional[AnyFunction] = None) -> Union[AnyFunction, Callable[[AnyFunction], AnyFunction]]:
    """Say that a predict() yields: `@streaming` or `@streaming()`. What it returns says so too."""
    return _same if function is None else function


@overload
def concurrent(function: AnyFunction) -> AnyFunction: ...
@overload
def concurrent(function: None = None, *, max: int = 1) -> Callable[[AnyFunction], AnyFunction]: ...


def concurrent(
    function: Optional[AnyFunction] = None, *, max: int = 1
) -> Union[AnyFunction, Callable[[AnyFunction], AnyFunction]]:
    """Say how many predictions an async predict() can serve at once: `@concurrent(max=4)`.

    Raises TypeError where that is no whole number, or predict() is not async; ValueError below 1.
    """
    if isinstance(max, bool) or not isinstance(max, int):
        raise TypeError("concurrent max must be an integer")
    if max < 1:
        raise ValueError("concurrent max must be at least 1")

    def mark(inner: AnyFunction) -> AnyFunction:
        if max > 1 and not is_async(inner):
            raise TypeError("concurrent max greater than 1 requires an async function")
        setattr(inner, MAX_ATTRIBUTE, max)
        return inner

    return mark if function is None else mark(function)


def _same(function: AnyFunction) -> AnyFunction:
    return function
