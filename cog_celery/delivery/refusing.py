"""The one way in which a message that cannot be served is answered, for bridges and slots alike.

It must not know why the message is wrong: that is the refusal's to say.
"""

from __future__ import annotations

import logging
import time

from cog_celery.delivery.link import Link
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.requests import Refusal
from cog_celery.delivery.snapshots import DialectName, dialect
from cog_celery.delivery.stream import Delivery, Queue

LARGEST_LETTER = 64 << 10
"""Bytes of a refused message that are kept: a thousand of them must not fill the server."""

log = logging.getLogger(__name__)


def refuse(
    link: Link, queue: Queue, delivery: Delivery, owner: str, refusal: Refusal, name: DialectName, ttl: int
) -> None:
    """Say to the producer, if it can be told, what is wrong, and put the message among the dead letters."""
    log.warning("entry %s of %s was refused: %s", delivery.entry, queue.name, refusal, extra={"event": "refused"})
    prediction = Prediction()
    prediction.fail(time.time(), str(refusal), "input")
    # A message that is no request cannot be echoed.
    snapshot = dialect(name, None).render(prediction)
    fault = queue.bury(link, delivery, owner, refusal.response_queue, snapshot, str(refusal), ttl, most=LARGEST_LETTER)
    if isinstance(fault, str):
        log.error(
            "entry %s of %s was ended all the same, without %s",
            delivery.entry,
            queue.name,
            fault,
        )
