"""What became of one delivery: the record that metrics, traces and the log's last line are made from.

It must not know who reads it. Of inputs and outputs there is nothing in it but sizes, and the model's own numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from cog_celery.delivery.requests import OLDEST_ENTRY

Outcome = Literal["succeeded", "failed", "canceled", "released", "stale", "refused"]
"""The first three were answered. `released`: another attempt answers; `stale`: another one has; `refused`: the message
cannot be served, or its response may not be written.
"""
Fault = Literal["model", "platform", "input"]
FAULTS = {"model": "ModelError", "platform": "PlatformError", "input": "InvalidInput"}
"""What a failure is called where its text has no place: in Flower's rows, in traces."""

Period = tuple[float, float]
"""Beginning and end, in seconds since 1970."""


class Upload(NamedTuple):
    """One output file that was sent, or could not be."""

    began: float
    ended: float
    size: int
    stored: bool


class Finished(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One delivery. Points in time are in seconds since 1970, durations in seconds, sizes in bytes.

    `slot`: None where a bridge has ended it; `received`: when the slot, or that bridge, had it; `ran`: whether its
    answer is the model's doing, and not a refusal of ours or that of a request that came too late; `reason`: the public
    text of a failure, None where it may quote an input, an output or a URL; `predict_time`: by the runner's own clock,
    if it lived to tell.
    """

    queue: str
    slot: int | None
    id: str
    entry: str
    attempt: int
    outcome: Outcome
    fault: Fault | None = None
    reason: str | None = None
    ran: bool = False
    received: float
    ended: float
    fetching: Period | None = None
    predicting: Period | None = None
    predict_time: float | None = None
    first_output: float | None = None
    last_output: float | None = None
    """None for an output in one piece."""
    uploads: Sequence[Upload] = ()
    committing: Period | None = None
    bytes_in: int = 0
    """The request, and the files that were fetched for it."""
    bytes_out: int = 0
    """The terminal snapshot, and the files that were stored."""
    metrics: msgspec.Raw | None = None
    """The model's own, a JSON object."""

    @property
    def answered(self) -> bool:
        """Whether this attempt gave the terminal response."""
        return self.outcome in ("succeeded", "failed", "canceled")

    @property
    def time_in_queue(self) -> float:
        """From the XADD, by the server's clock, to this attempt."""
        return time_in_queue(self.entry, self.received)

    @property
    def duration(self) -> float:
        """From the slot's having it to its end."""
        return max(0.0, self.ended - self.received)

    @property
    def fetch_time(self) -> float | None:
        """None without files to fetch, as with the other two."""
        return _length(self.fetching)

    @property
    def upload_time(self) -> float | None:
        """From the first file's start to the last one's end, some of which may be before the end of predict()."""
        if not self.uploads:
            return None
        return max(0.0, max(upload.ended for upload in self.uploads) - min(upload.began for upload in self.uploads))

    @property
    def commit_time(self) -> float | None:
        return _length(self.committing)

    @property
    def overhead(self) -> float:
        """What is neither predict() nor files: ours."""
        files = 0.0
        if self.uploads:
            began, ended = min(upload.began for upload in self.uploads), max(upload.ended for upload in self.uploads)
            # Only what was not beside predict().
            files = max(0.0, ended - max(began, self.predicting[1] if self.predicting else 0.0))
        predicted = self.predict_time or _length(self.predicting) or 0.0
        return max(0.0, self.duration - predicted - files - (self.fetch_time or 0.0))

    def __str__(self) -> str:
        """For people."""
        fault = f": {FAULTS[self.fault]}" if self.fault else ""
        predicted = f"{self.predict_time:.4f} s" if self.predict_time is not None else "nothing"
        return (
            f"prediction {self.id} {self.outcome} in {self.duration:.4f} s ({predicted} of it in predict()), after "
            f"{self.time_in_queue:.4f} s in the queue{fault}"
        )

    def fields(self) -> dict[str, Any]:
        """For machines."""
        told: dict[str, Any] = {
            "outcome": self.outcome,
            "duration": round(self.duration, 6),
            "time_in_queue": round(self.time_in_queue, 6),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
        if self.fault is not None:
            told["fault"] = self.fault
        if self.predict_time is not None:
            told["predict_time"] = round(self.predict_time, 6)
        if self.fetch_time is not None:
            told["fetch_time"] = round(self.fetch_time, 6)
        if self.uploads:
            told |= {"files_out": len(self.uploads), "upload_time": round(self.upload_time or 0.0, 6)}
        return told


def time_in_queue(entry: str, now: float) -> float:
    """Seconds since the XADD of the entry with this id, by the server's clock."""
    added = int(entry.partition("-")[0])
    return max(0.0, now - added / 1000) if added >= OLDEST_ENTRY else 0.0  # its producer may have chosen the id


def _length(period: Period | None) -> float | None:
    return None if period is None else max(0.0, period[1] - period[0])
