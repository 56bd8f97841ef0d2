"""A worker's connection to the broker: Celery's consumer, that waits out any outage quietly and lets in tickets alone.

It must not know what a ticket starts. All of it runs in the thread of Celery's event loop.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.utils.sysinfo import load_average
from celery.utils.threads import bound_open_broker_sockets
from celery.worker import heartbeat, pidbox
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.control import Control as CeleryControl
from celery.worker.consumer.heart import Heart as CeleryHeart
from celery.worker.state import SOFTWARE_INFO, maybe_shutdown
from kombu.entity import Exchange
from kombu.messaging import Producer
from kombu.transport import virtual

from cog_celery.worker.admission import Refused, admit
from cog_celery.worker.remote import Commands

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 1.0
"""Seconds between attempts to connect."""
STEADY = 2.0
"""Seconds for which a new connection must last before the broker is said to be back."""
LAST_WORDS = 1.0
"""Seconds for each thing that is said to a broker at the end, or on a connection that seems to be broken."""

log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Told of by the setting `worker_consumer`. Its worker, the `controller`, has a `node`."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        default_steps = [  # noqa: RUF012
            {
                "celery.worker.consumer.heart:Heart": "cog_celery.worker.consuming:Heart",
                "celery.worker.consumer.control:Control": "cog_celery.worker.consuming:Control",
            }.get(step, step)
            for step in CeleryConsumer.Blueprint.default_steps
        ]

    heart: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.node = self.controller.node
        self._restart_state = _AnyFrequency()
        self._connected_at: float | None = None
        self._pause = 0.0

    # -- outages

    @property
    def connected(self) -> bool:
        """Whether what is sent to this worker should come."""
        return self._connected_at is not None

    def connect(self) -> Any:
        """A connection, after a pause if the last one broke at once."""
        self._wait(self._pause)
        connection = super().connect()
        self._connected_at = time.monotonic()
        return connection

    def connection_for_read(self, heartbeat: Any = None) -> Any:
        connection = super().connection_for_read(heartbeat)
        if isinstance(connection.transport, virtual.Transport):
            _guard(connection.transport, self.node.refused.add)
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        """Celery's own pauses grow to 30 s, and each of its attempts is worth several lines to it."""

        def failed(error: Exception, interval: float) -> None:
            self.node.broker_lost(error)

        conn.ensure_connection(failed, None, FIRST_PAUSE, FIRST_PAUSE, LONGEST_PAUSE, callback=self._still_here)
        self.first_connection_attempt = False
        return conn

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._broke(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._broke(exc)
        self._give_up_connections()
        super().on_connection_error_after_connected(exc)

    def stop(self) -> None:
        """Celery ends: Flower is told, and if not even that succeeds soon, nobody else is."""
        try:
            for connection in self._connections():
                bound_open_broker_sockets(connection, LAST_WORDS)
            if self.heart is not None and self.connection is not None:
                self.heart.stop()
        except self.connection_errors:
            self._give_up_connections()
        self.heart = None
        super().stop()

    def _connections(self) -> list[Any]:
        both = (self.connection, self.event_dispatcher and self.event_dispatcher.connection)
        return [connection for connection in both if connection]

    def _give_up_connections(self) -> None:
        """Have them closed without a word: a server that is stopped would be waited for at each farewell."""
        for connection in self._connections():
            bound_open_broker_sockets(connection, LAST_WORDS)
            for channel in getattr(connection.transport, "channels", None) or ():
                if getattr(channel, "_in_poll", None):
                    channel._in_poll = None
                if hasattr(channel, "auto_delete_queues"):
                    channel.auto_delete_queues.clear()

    def doubt(self) -> None:
        """Another connection to this server, as old as ours, got no reply in time: have those who wait on ours make new
        ones. By itself the event loop would wait for each of them, one after another. May be called from any thread.
        """
        for connection in self._connections():
            for sock in _sockets(connection.transport):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def looped(self) -> None:
        """The event loop has come around."""
        if self._connected_at is not None and time.monotonic() - self._connected_at > STEADY:
            self._pause = 0.0
            self.node.broker_back()
        self.node.looped()

    def perform_pending_operations(self) -> None:
        """Called once around by the loop of transports that have no events."""
        super().perform_pending_operations()
        if self.hub is None:
            self.looped()

    def _broke(self, error: Exception) -> None:
        if self._connected_at is not None and time.monotonic() - self._connected_at <= STEADY:
            self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, self._pause * 2))
        self._connected_at = None
        self.node.broker_lost(error)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._still_here()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            self._still_here()

    def _still_here(self) -> None:
        """No loop comes around without a connection; a process that tries to get one is not stuck."""
        self.node.looped()
        maybe_shutdown()

    # -- messages

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Celery's own handler, that gets what was admitted."""
        handle = super().create_task_handler(*arguments, **options)
        queue, life = self.node.queue, self.node.life

        def on_message(message: Any) -> None:
            try:
                if self._is_probe(message):
                    return
                admit(message, queue.streams, life)
            except Refused as refusal:
                self._refuse(message, str(refusal))
                return
            try:
                handle(message)
            except Exception:
                log.exception("a bug of ours, with a ticket")

        return on_message

    def _is_probe(self, message: Any) -> bool:
        if not isinstance(message.headers, dict) or not self.node.probe.is_it(message.headers):
            return False
        message.ack_log_error(log, self.connection_errors)
        return True

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Also for remote control."""
        self._refuse(message, str(exc) if isinstance(exc, Refused) else "it cannot be decoded")

    def _refuse(self, message: Any, reason: str) -> None:
        self.node.refused.add(reason)
        message.ack_log_error(log, self.connection_errors)


class Heart(CeleryHeart):  # type: ignore[misc]
    """Celery's heartbeat for Flower, without its retries: they would hold the event loop while the broker is gone."""

    def start(self, c: Any) -> None:
        c.event_dispatcher.buffer_while_offline = False  # an error has the consumer connect again
        c.heart = _Beats(c.timer, c.event_dispatcher, self.heartbeat_interval, c.node)
        c.heart.start()

    def stop(self, c: Any) -> None:
        """The connection broke: there is nobody to tell."""
        beats, c.heart = c.heart, None
        if beats is not None:
            c.timer.cancel(beats.tref)

    shutdown = stop


class _Beats(heartbeat.Heart):  # type: ignore[misc]
    """They count predictions, as Flower's rows do, and not the turns that carry them."""

    def __init__(self, timer: Any, eventer: Any, interval: float | None, node: Any) -> None:
        super().__init__(timer, eventer, interval)
        self._node = node

    def _send(self, event: str, retry: bool = True) -> None:
        self.eventer.send(
            event,
            freq=self.interval,
            active=sum(len(slot.held) for slot in self._node.slots),
            processed=self._node.begun,
            loadavg=load_average(),
            retry=False,
            **SOFTWARE_INFO,
        )


class Control(CeleryControl):  # type: ignore[misc]
    """Remote control by our own commands."""

    def __init__(self, c: Any, **options: Any) -> None:
        self.box = Mailbox(c)
        self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown
        bootsteps.StartStopStep.__init__(self, c, **options)


class Mailbox(pidbox.Pidbox):  # type: ignore[misc]
    """Takes commands that are well-formed, and replies where Celery's clients expect it."""

    def __init__(self, c: Any) -> None:
        super().__init__(c)
        self.node.handlers = Commands(c.controller.node)
        self.node.reply = self._reply
        self._replies: str = self.node.mailbox.reply_exchange.name

    def on_message(self, body: Any, message: Any) -> None:
        if not self._well_formed(body):
            self.c.node.refused.add("it is no remote command")
            return
        known = ("method", "arguments", "destination", "pattern", "matcher", "reply_to", "ticket")
        message.headers = {}  # a clock from outside could be any number
        self.node.handle_message({name: body[name] for name in known if name in body}, message)

    def _well_formed(self, body: Any) -> bool:
        if not isinstance(body, dict) or not isinstance(body.get("method"), str):
            return False
        reply_to = body.get("reply_to") or {}
        return (
            isinstance(body.get("arguments") or {}, dict)
            and isinstance(body.get("destination") or [], list)
            and isinstance(body.get("pattern") or "", str)
            and body.get("matcher") in (None, "", "glob")  # a regular expression may take for ever
            and isinstance(body.get("ticket") or "", str)
            and isinstance(reply_to, dict)
            and (not reply_to or reply_to.get("exchange") == self._replies)
            and isinstance(reply_to.get("routing_key") or "", str)
        )

    def _reply(self, data: Any, exchange: str, routing_key: str, ticket: str | None, **options: Any) -> None:
        """Kombu's own would try for as long as the broker is gone, and hold the event loop."""
        replies = Exchange(exchange, type="direct", delivery_mode="transient", durable=False)
        Producer(self.node.channel, auto_declare=False).publish(
            data,
            exchange=replies,
            routing_key=routing_key,
            declare=[replies],
            headers={"ticket": ticket, "clock": self.node.mailbox.clock.forward()},
            serializer="json",
            retry=False,
        )


class _AnyFrequency:
    """Instead of Celery's limit on restarts, which reports and sleeps: pauses are taken in connect()."""

    def step(self) -> None: ...


def _sockets(transport: Any) -> list[socket.socket]:
    """Those of a transport to Redis that are open: of what waits for messages, and of what publishes."""
    found: list[Any] = []
    for channel in list(getattr(transport, "channels", None) or ()):
        made = vars(channel)  # what was not used yet has no connection, and would get one
        used = [getattr(made.get(name), "connection", None) for name in ("client", "subclient")]
        for kind in ("_in_use_connections", "_available_connections"):
            used += list(getattr(made.get("_pool"), kind, ()))
        found += [getattr(one, "_sock", None) for one in used]
    return [sock for sock in found if sock is not None]


def _guard(transport: Any, refuse: Callable[[str], None]) -> None:
    """Have a transport of kombu's own making, Redis say, survive what is no message at all: it would end the worker."""
    deliver, connection_errors = transport._deliver, tuple(set(transport.connection_errors) - {KeyError})

    def guarded_deliver(message: Any, queue: str) -> None:
        try:
            deliver(message, queue)
        except connection_errors:
            raise
        except Exception:
            log.debug("of a message from the broker:", exc_info=True)
            refuse("it is no message")

    transport._deliver = guarded_deliver
    if (readable := getattr(transport, "on_readable", None)) is not None:

        def guarded_readable(fileno: int) -> None:
            try:
                readable(fileno)
            except (ValueError, TypeError, RecursionError):  # of the envelope's JSON
                log.debug("of a message from the broker:", exc_info=True)
                refuse("it is no message")

        transport.on_readable = guarded_readable
