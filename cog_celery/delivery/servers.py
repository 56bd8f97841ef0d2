"""How a Redis is reached that a URL names: one server, or the primary that its sentinels name at that moment; and in
whose words it is said that it cannot be.

It must not know what is asked of the server.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from cog_celery.server_urls import RedisUrl, parse_redis

SENTINEL_TIMEOUT: Final = 1.0
"""Seconds for each sentinel: the next one is asked instead."""
AMQP_REFUSALS: Final = {403: "it does not let us in", 530: "it does not let us into the virtual host"}
"""By AMQP's reply codes."""


def never() -> Retry:
    """No retries: a lost reply is the asker's to sort out, and whoever waits has a pause of its own."""
    return Retry(NoBackoff(), 0)


def pool(url: str, **options: Any) -> redis.ConnectionPool:
    """Connections to that Redis, each to whichever server is the primary when it is made; `options` as redis-py's."""
    at = parse_redis(url)
    given: dict[str, Any] = {"protocol": 2, "retry": never(), "db": at.database, **options}
    given |= {**at.login, **(at.tls or {})}
    if at.path:
        given.pop("socket_keepalive", None)
        return redis.ConnectionPool(connection_class=UnixDomainSocketConnection, path=at.path, **given)
    if at.service:
        kind: type[AbstractConnection] = _PrimaryConnection if at.tls is None else _SecurePrimaryConnection
        return redis.ConnectionPool(connection_class=kind, sentinels=at, **given)
    [(host, port)] = at.hosts
    kind = Connection if at.tls is None else SSLConnection
    return redis.ConnectionPool(connection_class=kind, host=host, port=port, **given)


def client(url: str, **options: Any) -> redis.Redis:
    """A client of redis-py's with a pool of its own; nothing is tried twice."""
    return redis.Redis.from_pool(pool(url, **options))


class _ToThePrimary(Connection):
    """Asks the sentinels whenever a connection is made: after a failover the primary is another."""

    def __init__(self, *, sentinels: RedisUrl, **options: Any) -> None:
        super().__init__(host="", port=0, **options)  # type: ignore[no-untyped-call]
        self._sentinels = sentinels

    def _connect(self) -> Any:
        self.host, self.port = primary(self._sentinels)
        return super()._connect()  # type: ignore[no-untyped-call]


class _PrimaryConnection(_ToThePrimary):
    """Without TLS."""


class _SecurePrimaryConnection(_ToThePrimary, SSLConnection):
    """With TLS, to the sentinels too."""


def primary(at: RedisUrl) -> tuple[str, int]:
    """Host and port of the primary, as the first sentinel says that sees it well.

    Raises redis.ConnectionError that says of each sentinel why not.
    """
    reasons = []
    for host, port in at.hosts:
        shown = f"{host}:{port}"
        try:
            with _sentinel(at, host, port) as sentinel:
                masters = map(_pairs, sentinel.execute_command("SENTINEL", "MASTERS"))
                known = {_text(one[b"name"]): one for one in masters}
        except redis.ResponseError as error:
            unknown = "unknown command" in str(error).lower()
            reasons.append(f"{shown} is a Redis, and no sentinel" if unknown else f"{shown} answers {error}")
            continue
        except (redis.RedisError, OSError) as error:
            reasons.append(f"{shown}: {why(error)}")
            continue
        if at.service not in known:
            names = ", ".join(sorted(known)) or "none"
            reasons.append(f"{shown} knows no primary {at.service!r}; it knows: {names}")
            continue
        state = known[at.service]
        flags = _text(state[b"flags"]).split(",")
        if "master" in flags and not {"s_down", "o_down", "disconnected"} & set(flags):
            return _text(state[b"ip"]), int(state[b"port"])
        reasons.append(f"{shown} says that the primary is down")
    raise redis.ConnectionError(f"the sentinels name no primary {at.service!r} ({'; '.join(reasons)})")


def _sentinel(at: RedisUrl, host: str, port: int) -> redis.Redis:
    options: dict[str, Any] = {"protocol": 2, "retry": never(), "host": host, "port": port}
    options |= {"socket_timeout": SENTINEL_TIMEOUT, "socket_connect_timeout": SENTINEL_TIMEOUT}
    options |= {**at.sentinel_login, **(at.tls or {})}
    kind = Connection if at.tls is None else SSLConnection
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **options))


def _pairs(answer: Any) -> Mapping[bytes, Any]:
    return dict(zip(answer[::2], answer[1::2], strict=True)) if isinstance(answer, list) else answer


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def why(error: BaseException) -> str:
    """What went wrong with a connection, and what to do where that can be told; without user and password."""
    cause = _cause(error, ssl.SSLError)
    if isinstance(cause, ssl.SSLCertVerificationError):
        if "mismatch" in cause.verify_message or "not valid for" in cause.verify_message:
            return f"its certificate is another host's ({cause.verify_message.rstrip('.')})"
        return (
            f"its certificate is not trusted ({cause.verify_message}): name its authority with ssl_ca_certs in the URL"
        )
    if cause is not None:
        text = str(cause)
        if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
            return "it does not speak TLS: is the URL's scheme or port another?"
        if "CERTIFICATE_REQUIRED" in text or "HANDSHAKE_FAILURE" in text:
            return "it wants a certificate of ours: ssl_certfile and ssl_keyfile in the URL"
        if "UNKNOWN_CA" in text:
            return "it does not trust our certificate (ssl_certfile in the URL)"
        if isinstance(cause, ssl.SSLEOFError):
            return "it breaks TLS off: does it want a certificate of ours (ssl_certfile and ssl_keyfile in the URL)?"
        return f"TLS failed: {cause.reason or text}"
    code = getattr(_cause(error, Exception), "reply_code", None) or getattr(error.__cause__, "reply_code", None)
    if code in AMQP_REFUSALS:
        return f"{AMQP_REFUSALS[code]}: look at user, password and virtual host in its URL"
    return str(error).rstrip(".")


def _cause(error: BaseException, kind: type[Any]) -> Any:
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None or isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
