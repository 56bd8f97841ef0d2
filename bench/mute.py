"""`python -m bench.mute …` is `cog-celery …` that tells nothing of its predictions: no rows, log lines, figures, notes.

It is what the cost of telling is measured against. No option says this, so it takes out the one place in a slot where
all of it begins, and must not be of use to anybody else.
"""

from __future__ import annotations

from cog_celery.cli import main as cli
from cog_celery.slots import serving
from cog_celery.telemetry.rows import Rows


def _nothing(*arguments: object, **more: object) -> bytes:
    return b""


if __name__ == "__main__":
    slot = serving.Serving
    for owner, name in ((Rows, "begin"), (Rows, "end"), (slot, "_finished"), (slot, "_tell"), (serving, "noted")):
        assert callable(getattr(owner, name))
        setattr(owner, name, _nothing)
    cli.cli()
