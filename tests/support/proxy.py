"""A TCP proxy in front of a server that loses replies and cuts connections when it is told to.

It must not know what passes through it, but for a word that it is told to look for.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import redis

from tests.support.servers import RedisServer


class Proxy:
    """Has what a fleet needs of a server; `client` talks to the server itself."""

    def __init__(self, server: RedisServer) -> None:
        self.kind = server.kind
        self.client: redis.Redis = server.client
        self._target = server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._losing: bytes | None = None
        self.lost = 0
        """How many replies were lost so far."""
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_reply_to(self, word: bytes) -> None:
        """The next request with `word` in it reaches the server; its connection is cut before the reply is back."""
        with self._lock:
            self._losing = word

    def cut(self) -> None:
        """Cut every connection that is open now."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._close(pair)

    def stop(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self._target))
            for sock in (ours, theirs):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (ours, theirs)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._up, args=(pair,), daemon=True).start()
            threading.Thread(target=self._down, args=(pair,), daemon=True).start()

    def _up(self, pair: tuple[socket.socket, socket.socket]) -> None:
        try:
            while data := pair[0].recv(1 << 16):
                with self._lock:
                    losing = self._losing is not None and self._losing in data
                    if losing:
                        self._losing = None
                        self.lost += 1
                pair[1].sendall(data)
                if losing:
                    # The server has it all and runs it; nobody hears of that.
                    pair[0].shutdown(socket.SHUT_WR)
                    pair[0].close()
                    threading.Event().wait(0.05)
                    break
        except OSError:
            pass
        self._close(pair)

    def _down(self, pair: tuple[socket.socket, socket.socket]) -> None:
        try:
            while data := pair[1].recv(1 << 16):
                pair[0].sendall(data)
        except OSError:
            pass
        self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for sock in pair:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
