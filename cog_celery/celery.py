"""The Celery app: its settings, and the one task, which gives a slot a turn.

It must not know what a slot does with it. `celery -A cog_celery worker` and `celery -A cog_celery flower` start from
here; the broker is read from COG_CELERY_* variables when it is first needed.
"""

from __future__ import annotations

import logging
import os
from functools import cached_property, lru_cache
from typing import Any

from celery import Celery
from kombu.entity import Exchange, Queue

from cog_celery.delivery.requests import OUR_PREFIX
from cog_celery.delivery.servers import SENTINEL_TIMEOUT, never
from cog_celery.server_urls import parse_broker
from cog_celery.settings import Settings

TURN = "cog_celery.turn"

# Celery would have them win over the broker that this process was told of, and half a fleet would look elsewhere.
for _name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
    if os.environ.pop(_name, None) is not None:
        logging.getLogger(__name__).warning("%s is not heeded: the broker is COG_CELERY_BROKER_URL", _name)
AMQP_URLS = ("amqp://", "amqps://", "pyamqp://")
QUEUE_EXPIRES = 600.0
"""Seconds after which RabbitMQ deletes a worker's queue that nobody consumes from; who lives makes it again."""
SOCKET_TIMEOUT = 5.0
"""Seconds for a reply of the broker. Nothing of ours waits longer: the BRPOP of a Redis consumer is for one second."""


def _configuration() -> dict[str, Any]:
    return configuration(Settings.load({}, os.environ))


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings. Delivery is the stream's business: the broker carries tickets, and may lose them."""
    broker = parse_broker(settings.broker_url)
    options: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": 3.0,
        "socket_keepalive": True,
        # A BRPOP whose reply is overdue by this is given up: it went into a connection that only seems to be there.
        "health_check_interval": 5,
        "priority_steps": [0],
        "global_keyprefix": f"{OUR_PREFIX}broker:",
        "ack_emulation": False,
    }
    if not broker.redis:
        amqp = broker.url.startswith(AMQP_URLS)
        options = {"read_timeout": SOCKET_TIMEOUT, "write_timeout": SOCKET_TIMEOUT} if amqp else {}
    options |= broker.options
    if "sentinel_kwargs" in options:
        limits = {"socket_timeout": SENTINEL_TIMEOUT, "socket_connect_timeout": SENTINEL_TIMEOUT, "retry": never()}
        options["sentinel_kwargs"] = {**options["sentinel_kwargs"], **limits}
    return {
        "broker_url": broker.url,
        "broker_use_ssl": None if broker.tls is None else dict(broker.tls),
        "broker_transport_options": options,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A refusal (READONLY, OOM, no permission) passes when somebody mends the server: no reason to end the worker.
        "broker_channel_error_retry": True,
        # AMQP's own: a broker that is gone without a word is noticed within two of them.
        "broker_heartbeat": 10,
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_send_sent_event": False,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        "task_create_missing_queues": True,
        "worker_pool": "threads",
        "worker_consumer": "cog_celery.worker.consuming:Consumer",
        "worker_enable_remote_control": settings.remote_control,
        "worker_prefetch_multiplier": 1,
        # Credits bound what comes, also after a reconnection. Nothing is acknowledged late, and so nothing is canceled.
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        # With early acknowledgement and a task without events it stalls the threads pool for up to 1 s after each task.
        "worker_disable_prefetch": False,
        "worker_send_task_events": True,
        "worker_disable_rate_limits": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


class _App(Celery):  # type: ignore[misc]
    @cached_property
    def Worker(self) -> Any:
        return self.subclass_with_self("cog_celery.worker.process:Worker", name="Worker")


app = _App("cog_celery", set_as_current=False)
app.add_defaults(_configuration)


@lru_cache(maxsize=1024)
def worker_queue(life: str) -> Queue:
    """The Celery queue of one life of a worker: its tickets are for nobody else."""
    name = f"cog-celery.{life}"
    # A worker that is killed takes no leave. In Redis an empty queue is nothing, and expiry would cost each ticket.
    expires = QUEUE_EXPIRES if _is_amqp() else None
    return Queue(name, Exchange("cog-celery", type="direct"), routing_key=name, durable=True, expires=expires)


def _is_amqp() -> bool:
    return str(app.conf.broker_url).startswith(AMQP_URLS)


def delete_queue(connection: Any, life: str) -> None:
    """Delete the Celery queue of a worker that is gone, with the tickets in it. Raises what the transport raises."""
    queue = worker_queue(life)(connection.default_channel)
    if not _is_amqp():
        queue.declare()  # kombu's Redis transport deletes only what this process has declared
    queue.delete()


@app.task(name=TURN, send_events=False, ignore_result=True)  # type: ignore[untyped-decorator]
def turn(*ticket: Any) -> None:
    """Give a slot of this worker a turn, beginning with the ticket's entry."""
    from cog_celery.telemetry import traces
    from cog_celery.worker import process

    traces.turn()
    process.node().turn(ticket)
