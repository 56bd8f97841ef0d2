"""The benchmark: this project beside Cog's own queue workers, on one server, in one run. `python -m bench --help`.

It must not reach into the project it measures: fleets are started by their command lines and seen from outside.
"""

from __future__ import annotations


class BenchError(Exception):
    """The run cannot go on, or a result cannot be trusted. The message says why, with the last log lines."""
