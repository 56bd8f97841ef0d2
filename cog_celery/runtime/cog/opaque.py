"""The mark of a type whose JSON is passed as it is. It must not know who heeds it."""

from __future__ import annotations

__all__ = ["Opaque"]


class _Opaque:
    """See Opaque."""

    def __repr__(self) -> str:
        return "cog.Opaque"


Opaque = _Opaque()
"""`Annotated[T, Opaque]`: an input or output that is any JSON, whatever T is; it is neither checked nor converted."""
