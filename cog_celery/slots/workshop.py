"""What the slots of a worker share.

It must not know what a slot does with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from cog_celery.delivery.finished import Finished
from cog_celery.delivery.link import Outage, SharedLink
from cog_celery.delivery.stream import Queue, QueueSettings
from cog_celery.files.input_cache import InputCache
from cog_celery.files.outputs import Uploader
from cog_celery.runners.guardian import Guardian
from cog_celery.settings import Settings
from cog_celery.telemetry.rows import Rows
from cog_celery.telemetry.telling import Telling


@dataclass(frozen=True)
class Workshop:
    """One per worker; its callables may be called from any slot's thread."""

    settings: Settings
    agreed: QueueSettings
    queue: Queue
    uploader: Uploader
    input_cache: InputCache | None
    spare_link: SharedLink
    """For questions from threads that have no link of their own."""
    guardian: Guardian
    rows: Rows
    telling: Telling
    outage: Outage
    spawner: Executor
    """One thread that lives as long as the worker: a runner dies with the thread that spawned it."""
    draining: threading.Event
    """Nothing new is started."""
    giving_up: threading.Event
    """Nothing is waited for any more: the drain's limit is over."""
    tickets_wait: Callable[[], bool]
    """Whether more tickets are here than turns are taken, as after an outage."""
    is_revoked: Callable[[str, str], bool]
    """Whether the prediction of this id and entry was canceled before it came; asked once."""
    on_setup_lines: Callable[[list[str]], None]
    on_finished: Callable[[Finished], None]
    on_restarted: Callable[[float], None]
    """A runner that had died was set up again, which took so many seconds."""
    on_setup_failed: Callable[[str], None]
    """The runner of this name could not be set up."""
    on_out: Callable[[], None]
    """A runner has gone out of service, or has come back."""
