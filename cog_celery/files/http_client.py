"""HTTP exchanges of which every wait is bounded and can be cut short from another thread.

It owns connections, redirects, the rules for another try, and reasons that may be shown; it must not know what is
sent or fetched.
"""

from __future__ import annotations

import base64
import functools
import http
import http.client
import logging
import math
import os
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, TypeVar

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import DecodeError, HTTPError, IncompleteRead, InvalidHeader, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError

from cog_celery import __version__
from cog_celery.errors import PlatformError, UrlError
from cog_celery.files.cancel import Cancel
from cog_celery.files.urls import AddressPolicy, HttpUrl

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 15.0

TRIES: Final = 5
"""With the first delay below: about 4 s of waiting in all, so that a restarting server is outlived."""

FIRST_DELAY: Final = 0.25
MAX_DELAY: Final = 60.0
"""The longest Retry-After that is honored: a slot waits meanwhile."""

ALLOWANCE: Final = 60.0
LEAST_RATE: Final = 64 << 10
"""An exchange, redirects and all, may take ALLOWANCE seconds (names, connections, handshakes, headers, the server's own
work) and one second more for every LEAST_RATE bytes that have moved, half a megabit per second: each byte of a server
that drips comes within READ_TIMEOUT, and so would hold a slot for ever."""

MAX_REDIRECTS: Final = 3
MAX_ADDRESSES: Final = 4
"""Addresses of one name that are tried, each for CONNECT_TIMEOUT."""

MAX_DRAINED: Final = 64 << 10
"""Bytes of an answer nobody wants that are read to keep its connection; beyond, a new one is cheaper."""

ENCODINGS: Final = ("", "identity", "gzip", "x-gzip", "deflate")
"""We ask for none. Object stores send what was stored compressed as it is all the same: unpacked here, bit by bit."""

REDIRECTS_OF_GET: Final = frozenset({301, 302, 303, 307, 308})
REDIRECTS_OF_PUT: Final = frozenset({307, 308})

Result = TypeVar("Result")
_AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class HttpFailure(PlatformError):
    """An exchange that came to nothing; the message is a clause: `it answered 403 Forbidden`.

    `url` is the one at fault, which a redirect may have named. `status` is None when there was no answer.
    """

    def __init__(
        self,
        url: HttpUrl,
        reason: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        self.url = url
        self.reason = reason
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason

    def told(self, first: HttpUrl) -> str:
        """The reason, and who is at fault when it is not the server that was asked first."""
        return self.reason if self.url == first else f"{self.reason} (after a redirect to {self.url.shown})"


class TooSlow(HttpFailure):
    """An exchange that was cut since it took too long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer of a chain of redirects: status and headers are read, the body is not."""

    url: HttpUrl
    response: BaseHTTPResponse
    _pace: _Pace
    _cancel: Cancel

    def require_success(self) -> None:
        """Raise HttpFailure unless the status is 2xx; 408, 429 and 5xx are worth another try."""
        status = self.response.status
        if 200 <= status < 300:
            return
        raise HttpFailure(
            self.url,
            f"it answered {_status(status)}",
            status=status,
            retryable=status in (408, 429) or 500 <= status < 600,
            retry_after=_retry_after(self.response.headers.get("Retry-After")),
        )

    def read(self, most: int) -> bytes:
        """The next `most` bytes of the body, unpacked; fewer at its end. Raises HttpFailure, Canceled."""
        encoding = self.response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ENCODINGS:
            raise HttpFailure(self.url, "its answer is in an encoding that it was not asked for")
        block = self.response.read(most)
        self._pace.moved(len(block))
        if len(block) < most:  # a connection that was cut looks like the end of a body without a length
            self._cancel.check()
            self._pace.check(self.url)
        return block


class Client:
    """Pooled connections under one policy on addresses, for any number of threads.

    Certificates are verified; no proxy is used.
    """

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        first_delay: float = FIRST_DELAY,
        allowance: float = ALLOWANCE,
        ca_bundle: str | None = None,
    ) -> None:
        """`ca_bundle` is a file of the certificates to trust instead of the system's. Raises OSError for a bad one."""
        self._policy = policy or AddressPolicy()
        self._allowance = allowance
        # Its warnings and debug lines hold whole URLs, with their signatures.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._timeout = Timeout(connect=connect_timeout, read=read_timeout)
        self._first_delay = first_delay
        # maxsize: more threads than that at one host get connections that are not kept.
        self._pools = PoolManager(num_pools=64, maxsize=32, ssl_context=_tls(ca_bundle))
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def close(self) -> None:
        """Close the connections that are idle."""
        self._pools.clear()

    @contextmanager
    def exchange(
        self,
        method: str,
        url: HttpUrl,
        *,
        headers: Mapping[str, str],
        follow: frozenset[int],
        cancel: Cancel,
        body: Callable[[], Iterable[bytes]] | None = None,
        until: float = math.inf,
    ) -> Iterator[Answer]:
        """One request, sent again in full to each redirect whose status is in `follow`; over at `until` (monotonic).

        `body` is called for each sending; `headers` must have its Content-Length. Raises HttpFailure, also while the
        answer's body is read; Canceled; and whatever `body` raises.
        """
        pace = _Pace(self._allowance, until)
        for _ in range(MAX_REDIRECTS + 1):
            with self._send(method, url, headers, body, cancel, pace) as response:
                if response.status not in follow:
                    yield Answer(url, response, pace, cancel)
                    return
                url = _redirected(url, response)
        raise HttpFailure(url, f"there were more than {MAX_REDIRECTS} redirects")

    def trying(self, attempt: Callable[[], Result], cancel: Cancel) -> Result:
        """The result of the first attempt that does not fail; those that are worth another try get TRIES in all.

        Raises the last HttpFailure, or Canceled.
        """
        for number in range(1, TRIES + 1):
            try:
                return attempt()
            except HttpFailure as failure:
                if not failure.retryable:
                    raise
                if number == TRIES:
                    failure.reason += f", {TRIES} times"
                    raise
                delay = self._first_delay * 2 ** (number - 1) * random.uniform(0.75, 1.25)
                wait = max(delay, min(failure.retry_after or 0.0, MAX_DELAY))
            cancel.sleep(wait)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _send(
        self,
        method: str,
        url: HttpUrl,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes]] | None,
        cancel: Cancel,
        pace: _Pace,
    ) -> Iterator[BaseHTTPResponse]:
        cancel.check()
        line = _Line(cancel, self._policy)
        sent = (lambda: pace.counting(body())) if body is not None else None
        try:
            with cancel.calling(line.cut), pace.calling(line.cut):
                response = self._open(method, url, headers, sent, line)
                try:
                    yield response
                    cancel.check()
                    pace.check(url)
                    _drain(response)
                finally:
                    response.close()
        except HTTPError as error:
            # `from None`: the text of these errors may hold the whole URL.
            cancel.check()
            pace.check(url)
            raise _failure(url, error) from None
        finally:
            line.close()

    def _open(
        self,
        method: str,
        url: HttpUrl,
        headers: Mapping[str, str],
        body: Callable[[], Iterable[bytes]] | None,
        line: _Line,
    ) -> BaseHTTPResponse:
        sent = {"User-Agent": f"cog-celery/{__version__}", "Accept-Encoding": "identity", **headers}
        if url.credentials is not None:
            sent["Authorization"] = "Basic " + base64.b64encode(url.credentials.encode()).decode()
        pool = self._pools.connection_from_host(url.host, url.port, url.scheme)
        _current.line = line
        try:
            return pool.urlopen(
                method,
                url.target,
                body=body() if body is not None else None,
                headers=sent,
                retries=False,
                redirect=False,
                timeout=self._timeout,
                preload_content=False,
            )
        except UrlError as error:  # of the policy on addresses
            raise HttpFailure(url, str(error)) from None
        finally:
            del _current.line


class _Pace:
    """How long one exchange may take, all of its redirects together: the more has moved, the longer."""

    def __init__(self, allowance: float, until: float) -> None:
        self._started = time.monotonic()
        self._allowance = allowance
        self._until = until
        self._moved = 0
        self._late = False

    def moved(self, size: int) -> None:
        """These bytes of a body have come, or have been sent."""
        self._moved += size

    def counting(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks, each counted once it was sent."""
        for block in blocks:
            yield block
            self.moved(len(block))

    @contextmanager
    def calling(self, cut: Callable[[], None]) -> Iterator[None]:
        """While inside, call `cut` as soon as it took too long."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(max(0.0, self._left())):
                if self._left() <= 0:
                    self._late = True
                    cut()
                    return

        threading.Thread(target=watch, name="pace", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def check(self, url: HttpUrl) -> None:
        """Raise TooSlow if it was cut."""
        if self._late:
            took = time.monotonic() - self._started
            raise TooSlow(url, f"it was too slow: {self._moved} bytes in {took:.1f} s")

    def _left(self) -> float:
        due = min(self._started + self._allowance + self._moved / LEAST_RATE, self._until)
        return due - time.monotonic()


@functools.cache
def _tls(ca_bundle: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_bundle)


class _Line:
    """The sockets of one exchange, held by duplicates so that another thread can shut them down.

    A duplicate stays valid whoever closes the original, and reaches it while it connects, shakes hands for TLS, waits
    or reads. A cut can only hit another exchange that took over the connection in the instant before `close`; to that
    one it is a broken connection, as idle ones break at any time.
    """

    def __init__(self, cancel: Cancel, policy: AddressPolicy) -> None:
        self.cancel = cancel
        self.policy = policy
        self._lock = threading.Lock()
        self._is_cut = False
        self._handles: list[socket.socket] = []

    def attach(self, sock: socket.socket) -> None:
        """Make `cut` reach this socket. Raises _NoConnection when it is too late."""
        handle = socket.socket(sock.family, sock.type, sock.proto, fileno=os.dup(sock.fileno()))
        with self._lock:
            self._handles.append(handle)
            if self._is_cut:
                raise _NoConnection("the connection was cut")

    def cut(self) -> None:
        """End every wait on these sockets."""
        with self._lock:
            self._is_cut = True
            for handle in self._handles:
                with suppress(OSError):  # not connected, or closed by the peer
                    handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the sockets."""
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()


class _Current(threading.local):
    line: _Line


_current = _Current()
"""The exchange that this thread is in: urllib3 makes and picks connections without being told for whom."""


class _NoConnection(HTTPError):
    """There is no connection, and why."""

    def __init__(self, reason: str, *, retryable: bool = True) -> None:
        self.retryable = retryable
        super().__init__(reason)


class _Connection(HTTPConnection):
    """A connection that belongs to an exchange, to an address that the policy lets pass."""

    def _new_conn(self) -> socket.socket:
        assert self.port is not None
        timeout = float(self.timeout or CONNECT_TIMEOUT)
        line = _current.line
        host = self._dns_host
        failure = "it has no address"
        for family, kind, protocol, _, address in _resolve(host, self.port, timeout, line.cancel)[:MAX_ADDRESSES]:
            line.policy.check(host, self.port, address[0])
            sock = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(timeout)
                line.attach(sock)
                sock.connect(address)
                return sock
            except TimeoutError:
                sock.close()
                failure = f"no connection within {timeout:g} s"
            except OSError as error:
                sock.close()
                failure = f"no connection ({error.strerror})"
            except BaseException:
                sock.close()
                raise
        raise _NoConnection(failure)

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _current.line.attach(self.sock)
        super().request(*args, **kwargs)


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _resolve(host: str, port: int, timeout: float, cancel: Cancel) -> Sequence[_AddressInfo]:
    """The addresses of a name.

    Only the resolver's own limit, half a minute or more, ends a look-up: so it has a thread of its own, which we leave.
    """
    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    answers: queue.SimpleQueue[Sequence[_AddressInfo] | OSError | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    with cancel.calling(lambda: answers.put(None)):
        try:
            answer = answers.get(timeout=timeout)
        except queue.Empty:
            raise _NoConnection(f"the name {host} was not resolved within {timeout:g} s") from None
    cancel.check()
    if answer is None or isinstance(answer, OSError):
        unknown = answer is not None and answer.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        why = "is unknown" if unknown else "cannot be resolved"
        raise _NoConnection(f"the name {host} {why}", retryable=not unknown)
    return answer


def _redirected(url: HttpUrl, response: BaseHTTPResponse) -> HttpUrl:
    location = response.headers.get("Location")
    if not location:
        raise HttpFailure(url, f"it answered {_status(response.status)} without a Location", status=response.status)
    try:
        return url.resolve(location)
    except UrlError as error:
        raise HttpFailure(url, f"it redirected to a URL that cannot be used: {error}", status=response.status) from None


def _drain(response: BaseHTTPResponse) -> None:
    """Read the rest of a short answer, which gives its connection back to the pool."""
    left = response.length_remaining
    if left is not None and left <= MAX_DRAINED:
        with suppress(HTTPError):  # the answer has been understood already; only the connection is lost
            response.read(decode_content=False)


def _status(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _retry_after(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return Retry().parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _failure(url: HttpUrl, error: HTTPError) -> HttpFailure:
    """What an error of urllib3 means, in words that hold nothing of the URL."""
    match error:
        case _NoConnection():
            return HttpFailure(url, str(error), retryable=error.retryable)
        case HTTPTimeoutError():
            return HttpFailure(url, "it did not answer in time", retryable=True)
        case SSLError():
            cause = error.args[0] if error.args else None
            if isinstance(cause, ssl.SSLCertVerificationError):
                return HttpFailure(url, f"its certificate is not trusted ({cause.verify_message})")
            return HttpFailure(url, "the TLS connection failed", retryable=True)
        case ProtocolError():
            return _broken(url, error.args[1] if len(error.args) > 1 else None)
        case DecodeError():
            return HttpFailure(url, "its answer is not in the encoding that it claims")
        case _:
            return HttpFailure(url, f"the exchange failed ({type(error).__name__})")


def _broken(url: HttpUrl, cause: object) -> HttpFailure:
    match cause:
        case IncompleteRead():
            missing = f"{cause.partial} bytes came, {cause.expected} are missing"
            return HttpFailure(url, f"the connection broke off: {missing}", retryable=True)
        case http.client.IncompleteRead() | http.client.RemoteDisconnected():
            return HttpFailure(url, "the connection broke off", retryable=True)
        case http.client.HTTPException():
            return HttpFailure(url, "its answer is not HTTP")
        case _:
            return HttpFailure(url, "the connection broke off", retryable=True)
