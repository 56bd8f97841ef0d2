"""A TCP proxy in front of a server: it delays, loses, swallows and cuts what passes, when it is told to.

It must not know what passes through it, but for words that it is told to look for.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

import redis

from tests.support.servers import Server

CHUNK = 1 << 16


class _Pair:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.request = b""
        """What the client sent last."""
        self.robbed = False
        """Whether something of it was swallowed: it makes no sense any more."""
        self.forgotten = False
        """Whether all that comes on it is swallowed."""

    def close(self) -> None:
        for sock in (self.client, self.server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def reset(self) -> None:
        """Close with an RST to both sides. Shut for reading only, which tells nobody but the threads that read."""
        for sock in (self.client, self.server):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RD)
            sock.close()


class Proxy:
    """Has what a fleet needs of a server; `client` talks to the server itself.

    delay(), black_hole() and half_open() hold for all connections, those to come too, until heal().
    """

    def __init__(self, server: Server) -> None:
        self.client: redis.Redis = server.client
        self._target = server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._losing: tuple[bytes, bytes] | None = None
        self._delay = 0.0
        self._requests_pass = threading.Event()
        self._replies_pass = threading.Event()
        self._requests_pass.set()
        self._replies_pass.set()
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

    def delay(self, seconds: float) -> None:
        """From now on each reply comes this much later."""
        self._delay = seconds

    def black_hole(self) -> None:
        """From now on nothing passes, either way, and nobody is told: not of an end either. Connections stay open, and
        new ones are accepted.
        """
        with self._lock:
            self._requests_pass.clear()
            self._replies_pass.clear()

    def half_open(self) -> None:
        """From now on the server gets its requests, and nobody gets a reply, nor is told that there will be none."""
        with self._lock:
            self._replies_pass.clear()

    def forget(self) -> None:
        """From now on nothing passes on connections that are open now, for good, and nobody is told: as with a firewall
        that was restarted.
        """
        with self._lock:
            for pair in self._pairs:
                pair.forgotten = True

    def heal(self) -> None:
        """Let all pass as before. What was swallowed stays lost: connections that miss something are reset."""
        with self._lock:
            self._delay = 0.0
            robbed = [pair for pair in self._pairs if pair.robbed]
            self._pairs.difference_update(robbed)
            for pair in robbed:
                pair.reset()
            self._requests_pass.set()
            self._replies_pass.set()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._up, args=(pair,), daemon=True).start()
            threading.Thread(target=self._down, args=(pair,), daemon=True).start()

    def _up(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(CHUNK):
                with self._lock:
                    pair.request = data
                    swallowed = pair.forgotten or not self._requests_pass.is_set()
                    pair.robbed |= swallowed
                if not swallowed:
                    pair.server.sendall(data)
        self._leave(pair, self._requests_pass)

    def _down(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(CHUNK):
                if self._delay:
                    time.sleep(self._delay)
                with self._lock:
                    if self._losing is not None and self._losing[0] in pair.request and self._losing[1] in data:
                        self._losing = None
                        self.lost += 1
                        break
                    swallowed = pair.forgotten or not self._replies_pass.is_set()
                    pair.robbed |= swallowed
                if not swallowed:
                    pair.client.sendall(data)
        self._leave(pair, self._replies_pass)

    def _leave(self, pair: _Pair, passes: threading.Event) -> None:
        """One side is gone: tell the other, as soon as that can pass."""
        with self._lock:
            if not passes.is_set():
                pair.robbed = True
        passes.wait()
        self._end(pair)

    def _end(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)
        pair.close()
