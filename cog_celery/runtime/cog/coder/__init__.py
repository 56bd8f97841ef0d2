"""How a model says what its own types look like in JSON.

It must not know which types there are: a model registers its coders, those of this package among them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Optional

__all__ = ["Coder"]

_registered: list[type[Coder]] = []


class Coder(ABC):
    """Turns values of some type into JSON and back. Used for inputs and outputs, once it is registered."""

    @staticmethod
    def register(coder: type[Coder]) -> type[Coder]:
        """Use a coder from now on; of several for one type the first is taken. Works as a decorator too."""
        if coder not in _registered:
            _registered.append(coder)
        return coder

    @staticmethod
    def lookup(tpe: Any) -> Optional[Coder]:
        """The coder for a type; None when no registered one takes it."""
        for kind in _registered:
            coder = kind.factory(tpe)
            if coder is not None:
                return coder
        return None

    @staticmethod
    @abstractmethod
    def factory(tpe: Any) -> Optional[Coder]:
        """A coder for that type, None when it is not one of its own."""

    @abstractmethod
    def encode(self, x: Any) -> Any:
        """The value as JSON has it: an object as a rule."""

    @abstractmethod
    def decode(self, x: Any) -> Any:
        """The value that a JSON value stands for. Raises whatever the type raises for one that is not valid."""


def own_coder(tpe: Any) -> Optional[Coder]:
    """The model's own coder for a type: what those of this package do is done without them, and with files too."""
    if not _registered:
        return None
    coder = Coder.lookup(tpe)
    return None if coder is None or type(coder).__module__.startswith(f"{__name__}.") else coder
