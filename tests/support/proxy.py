"""A TCP proxy in front of a server that loses replies and cuts connections when it is told to.

It must not know what passes through it, but for words that it is told to look for.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import redis

from tests.support.servers import RedisServer


class _Pair:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.request = b""
        """What the client sent last."""

    def close(self) -> None:
        for sock in (self.client, self.server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Proxy:
    """Has what a fleet needs of a server; `client` talks to the server itself."""

    def __init__(self, server: RedisServer) -> None:
        self.client: redis.Redis = server.client
        self._target = server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._losing: tuple[bytes, bytes] | None = None
        self.lost = 0
        """How many replies were lost so far."""
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_reply(self, to: bytes = b"", holding: bytes = b"") -> None:
        """Once: the server runs a request with `to` in it, and when its reply has `holding` in it, nobody gets that.

        The connection is cut instead.
        """
        with self._lock:
            self._losing = (to, holding)

    def cut(self) -> None:
        """Cut every connection that is open now."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def stop(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._up, args=(pair,), daemon=True).start()
            threading.Thread(target=self._down, args=(pair,), daemon=True).start()

    def _up(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(1 << 16):
                with self._lock:
                    pair.request = data
                pair.server.sendall(data)
        self._end(pair)

    def _down(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(1 << 16):
                with self._lock:
                    if self._losing is not None and self._losing[0] in pair.request and self._losing[1] in data:
                        self._losing = None
                        self.lost += 1
                        break
                pair.client.sendall(data)
        self._end(pair)

    def _end(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)
        pair.close()
