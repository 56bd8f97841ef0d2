"""SIGUSR1, and where it strikes: the one place that decides when a prediction may be interrupted.

It must not know what runs. The signal may come at any moment. While the model's code runs in the main thread it
raises CancelationException there; while the runner itself is at work (a message half written) it is kept for the next
step; outside a prediction it hits nobody.
"""

from __future__ import annotations

from signal import SIG_BLOCK, SIG_UNBLOCK, SIGUSR1, getsignal, pthread_sigmask, signal
from typing import Any, Callable, Optional

from ..exceptions import CancelationException


class Cancelation:
    """Used by the main thread, which is where Python runs its signal handlers.

    begin() and end() enclose a prediction. Within it `in_model` is set right before the model's code is entered and
    cleared behind it, inside a `try` that catches CancelationException; once it is set, `pending` has to be looked at.
    """

    __slots__ = ("_running", "in_model", "pending", "requested", "wake")

    def __init__(self) -> None:
        self._running = False
        self.requested = False
        self.pending = False
        self.in_model = False
        self.wake: Optional[Callable[[], object]] = None
        """Cancels the task, while an event loop runs the model's code."""

    def install(self) -> None:
        """Handle the signal from now on, also when the worker's thread had it blocked."""
        signal(SIGUSR1, self._strike)
        pthread_sigmask(SIG_UNBLOCK, {SIGUSR1})

    def begin(self) -> None:
        """A prediction starts: from here on a signal is for it, also when the last one has taken it."""
        if getsignal(SIGUSR1) != self._strike or SIGUSR1 in pthread_sigmask(SIG_BLOCK, ()):
            self.install()
        self.requested = self.pending = False
        self._running = True

    def end(self) -> None:
        """It is over: from here on a signal hits nobody."""
        self._running = False
        self.pending = False

    def _strike(self, number: int, frame: Any) -> None:
        # Once in a prediction: a second one would strike the model's clean-up.
        if not self._running or self.requested:
            return
        self.requested = True
        if self.in_model:
            self.in_model = False
            raise CancelationException
        if self.wake is not None:
            self.wake()
        else:
            self.pending = True


def is_cancelation(error: BaseException) -> bool:
    """Whether an exception is a CancelationException, or was raised because of one."""
    seen = set()
    cause: Optional[BaseException] = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, CancelationException) or type(cause).__name__ == "CancelledError":
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False
