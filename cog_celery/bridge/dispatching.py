"""Tickets on their way to workers, through the broker.

It must not know what a ticket is for, nor whether it was claimed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
from celery import Celery
from kombu.exceptions import OperationalError

from cog_celery.celery import delete_queue, turn, worker_queue
from cog_celery.delivery.link import Outage
from cog_celery.delivery.servers import why
from cog_celery.delivery.stream import Ticket, slot_life
from cog_celery.errors import ServerLost
from cog_celery.telemetry import traces

FAREWELL = 2.0
"""Seconds for a broker to take notice that we leave."""


class Dispatcher:
    """Publishes tickets: one connection to the broker and one producer, under a lock, since a producer is not
    thread-safe.
    """

    def __init__(self, app: Celery, outage: Outage, same_server: Outage | None = None) -> None:
        """`same_server`: of the other connections to the broker's server, when it is the queues', too."""
        self._app = app
        self._outage = outage
        self._same_server = same_server or outage
        self._silences = self._same_server.silences
        self._lock = threading.Lock()
        self._connection = app.connection_for_write()
        self._producer = self._connection.Producer(auto_declare=False)

    def dispatch(self, ticket: Ticket, trace: Any = None) -> None:
        """Send a ticket to its slot's worker, in a trace, if telemetry gave one. Raises ServerLost."""
        queue = worker_queue(slot_life(ticket.slot))
        with self._lock, self._reaching(), traces.within(trace):
            turn.apply_async(
                msgspec.structs.astuple(ticket),
                producer=self._producer,
                queue=queue,
                declare=[],
                retry=False,
                argsrepr=f"({ticket.stream}, {ticket.entry})",
                kwargsrepr="{}",
            )

    def delete(self, life: str) -> None:
        """Delete the Celery queue of a worker that is gone. Raises ServerLost."""
        with self._lock, self._reaching():
            delete_queue(self._connection, life)

    def close(self) -> None:
        """Let go of the connection; one that takes long to say good-bye is left to the end of the process."""
        self._leave().join(FAREWELL)

    def _leave(self) -> threading.Thread:
        leave = threading.Thread(target=_release, args=(self._connection,), name="leave", daemon=True)
        leave.start()
        return leave

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        if self._silences != self._same_server.silences:
            self._renew()
        errors = self._connection.connection_errors + self._connection.channel_errors
        try:
            yield
        except (OperationalError, OSError, *errors) as error:
            lost = ServerLost(f"the broker did not answer: {why(error)}")
            self._outage.begin(lost)
            self._renew()
            raise lost from error
        self._outage.end()

    def _renew(self) -> None:
        self._leave()
        self._silences = self._same_server.silences
        self._connection = self._app.connection_for_write()
        self._producer = self._connection.Producer(auto_declare=False)


def _release(connection: Any) -> None:
    with contextlib.suppress(Exception):  # whatever a transport raises: we are done with it
        connection.release()
