"""The exceptions that a model may catch.

It must not know who raises them.
"""

from __future__ import annotations

__all__ = ["CancelationException"]


class CancelationException(BaseException):
    """Raised inside predict() when its prediction is canceled; clean up and let it pass.

    Not an Exception, so that a model's own `except Exception` does not stop it.
    """
