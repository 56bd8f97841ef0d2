"""The port at which the processes of one slot meet: MASTER_PORT, as PyTorch's launchers call it, one for each slot.

Their default is 29500 for all, and two slots on a host would meet in one group, or one of them fail. It must not know
who listens on it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Mapping

FIRST = 29500
"""PyTorch's default, and below the ports that Linux gives to outgoing connections."""
HOW_MANY = 1000

log = logging.getLogger(__name__)


class MasterPort:
    """One slot's. It is reserved among all workers of this host, or container, until close()."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment`: the model's; a MASTER_PORT in it is the first to be tried."""
        given = environment.get("MASTER_PORT", "")
        self._first = int(given) if given.isascii() and given.isdigit() and 0 < int(given) < 65536 else FIRST
        self._address = environment.get("MASTER_ADDR") or "127.0.0.1"
        self._reserved: socket.socket | None = None
        self._number = 0

    def variables(self) -> dict[str, str]:
        """What the runner's environment says of it; the same as before, unless somebody listens there now."""
        if self._reserved is None or not _is_free(self._number):
            self.close()
            self._reserve()
        if self._reserved is None:
            return {}
        port = str(self._number)
        # The second is where torchrun looks for its own default.
        return {"MASTER_ADDR": self._address, "MASTER_PORT": port, "PET_MASTER_PORT": port}

    def close(self) -> None:
        """Let another have it."""
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def _reserve(self) -> None:
        for number in range(self._first, min(self._first + HOW_MANY, 65536)):
            # A name in the abstract namespace is one process's, within this network namespace as a port is, and is
            # free again when its process is gone. The port itself is left alone: not every server may share it.
            name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                name.bind(f"\0cog-celery-master-port-{number}".encode())
            except OSError as error:
                name.close()
                if error.errno != errno.EADDRINUSE:
                    break
                continue
            if _is_free(number):
                self._reserved, self._number = name, number
                return
            name.close()
        log.warning(
            "no port from %d on is free for MASTER_PORT: a model of several processes has to choose", self._first
        )


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    return False
    return True
