"""Another name of cog.exceptions, for models that import from here."""

from __future__ import annotations

from ..exceptions import CancelationException

__all__ = ["CancelationException"]
