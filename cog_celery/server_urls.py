"""URLs of the servers that a fleet stands on: what they may say, and what that is to redis-py and to kombu.

It must not know what the servers are for, nor reach one; of the disk it looks at certificates and keys alone.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

REDIS: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
AMQP: Final = ("amqp", "amqps", "pyamqp")
PORT, SENTINEL_PORT = 6379, 26379
SENTINEL_FORM: Final = "redis+sentinel://USER:PASSWORD@host1:26379,host2:26379/NAME/0, NAME as in `sentinel monitor`"
CERT_REQS: Final = ("required", "optional", "none")

_TLS: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs")
_TLS_OF_REDIS: Final = (*_TLS, "ssl_check_hostname")
_TLS_OF_AMQP: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_LOGIN: Final = ("username", "password")
_OF_SENTINELS: Final = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class RedisUrl:
    """A Redis: one server at `hosts` or at the socket `path`, or the primary that the sentinels at `hosts` call
    `service`. `tls` holds redis-py's arguments for it, and is None without. A repr would show passwords: there is none.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    database: int = 0
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Broker:
    """What kombu needs: its URL, its transport's options, and the arguments for TLS (None: as the scheme says)."""

    url: str = field(repr=False)
    redis: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)


def parse_redis(text: str) -> RedisUrl:
    """What the URL of a Redis says. Raises ValueError with a sentence that quotes no secret."""
    url = _split(text, REDIS)
    sentinel, secure = url.scheme.endswith("+sentinel"), url.scheme.startswith("rediss")
    known = ("db",) + (_TLS_OF_REDIS if secure else ()) + (_OF_SENTINELS if sentinel else ())
    query = _query(url, known + (_LOGIN if url.scheme == "unix" else ()), insecure="" if secure else "rediss://")
    login = {name: query.pop(name) for name in _LOGIN if name in query} | _login(url)
    database = _database(query.pop("db")) if "db" in query else None
    tls = _tls_of_redis(query) if secure else None
    if url.scheme == "unix":
        if not url.path.strip("/"):
            raise ValueError("the URL names no socket: unix:///path/to/redis.sock is needed")
        return RedisUrl(path=unquote(url.path), database=database or 0, login=login)
    words = url.path.strip("/").split("/") if url.path.strip("/") else []
    service = unquote(words.pop(0)) if sentinel and words else ""
    if len(words) > 1 or (words and not words[0].isdecimal()):
        raise ValueError(
            "the URL's path is the number of a database"
            if not sentinel
            else f"the URL's path is a primary's name and the number of a database: {SENTINEL_FORM}"
        )
    if sentinel and not service:
        raise ValueError(f"the URL does not say how its sentinels call the primary: {SENTINEL_FORM}")
    if database is None:
        database = _database(words[0]) if words else 0
    hosts = _hosts(url, SENTINEL_PORT if sentinel else PORT)
    if len(hosts) > 1 and not sentinel:
        raise ValueError(f"one host is needed; several are those of sentinels: {SENTINEL_FORM}")
    sentinel_login = {name.removeprefix("sentinel_"): query[name] for name in _OF_SENTINELS if name in query}
    return RedisUrl(hosts, "", service, database, login, sentinel_login, tls)


def parse_broker(text: str) -> Broker:
    """What the URL of a broker says. Raises ValueError with a sentence that quotes no secret."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None:
        raise ValueError("is not a URL: redis:// or amqp://, say")
    if scheme[1] in REDIS:
        return _redis_broker(parse_redis(text))
    if "sentinel" in scheme[1]:
        raise ValueError(f"a broker behind sentinels is written as {SENTINEL_FORM}")
    if scheme[1] in AMQP:
        return _amqp_broker(text.split(";"))
    if any(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", one) is None for one in text.split(";")):
        raise ValueError("is not a URL: redis:// or amqp://, say")
    return Broker(text, redis=scheme[1] == "redis+socket")


def _redis_broker(at: RedisUrl) -> Broker:
    user, password = at.login.get("username", ""), at.login.get("password", "")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    if at.path:
        return Broker(f"redis+socket://{login}{quote(at.path)}?virtual_host={at.database}", redis=True)
    # Without arguments kombu would trust anybody who answers.
    tls = None if at.tls is None else dict(at.tls)
    if not at.service:
        scheme = "redis" if tls is None else "rediss"
        return Broker(f"{scheme}://{login}{_host(*at.hosts[0])}/{at.database}", redis=True, tls=tls)
    url = ";".join(f"sentinel://{login}{_host(*host)}/{at.database}" for host in at.hosts)
    sentinels = {**at.sentinel_login, **({} if tls is None else {"ssl": True, **tls})}
    return Broker(url, redis=True, options={"master_name": at.service, "sentinel_kwargs": sentinels}, tls=tls)


def _amqp_broker(texts: list[str]) -> Broker:
    tls = None
    plain = []
    for text in texts:
        url = _split(text, AMQP)
        secure = url.scheme == "amqps"
        query = _query(url, _TLS_OF_AMQP if secure else (), insecure="" if secure else "amqps://")
        if secure and len(texts) > 1:
            raise ValueError("one amqps:// host is needed: give several brokers one name")
        if secure:
            tls = _tls_of_amqp(query)
        plain.append(url._replace(query="").geturl())
    return Broker(";".join(plain), tls=tls)


def _split(text: str, schemes: tuple[str, ...]) -> SplitResult:
    if re.match(r"[^/?#]*://[^/?#@]*[?#][^/]*@", text):
        raise ValueError("in a user or password # is written as %23, and ? as %3F")
    try:
        url = urlsplit(text)
        several = "," in url.netloc
        port = None if several else url.port
    except ValueError:
        raise ValueError("is not a URL: look at its host and port") from None
    if url.scheme not in schemes or not text.startswith(f"{text[: len(url.scheme)]}://"):
        expected = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"a URL that begins with {expected} is needed{_nearest(url.scheme, schemes)}")
    if url.scheme != "unix" and not several and not url.hostname:
        raise ValueError("the URL names no host")
    if port == 0:
        raise ValueError("the URL's port is 0")
    if url.fragment:
        raise ValueError("the URL has a #, which means nothing here")
    return url


def _hosts(url: SplitResult, port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for text in url.netloc.rpartition("@")[2].split(","):
        try:
            one = urlsplit(f"//{text.strip()}")
            if not one.hostname or one.port == 0:
                raise ValueError
            found.append((unquote(one.hostname), one.port or port))
        except ValueError:
            raise ValueError(f"{text!r} is not a host and port, like host1:{port}") from None
    return tuple(found)


def _login(url: SplitResult) -> dict[str, str]:
    login = {"username": url.username, "password": url.password}
    return {name: unquote(value) for name, value in login.items() if value}


def _host(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("a database is a number, like 0")
    return int(text)


def _query(url: SplitResult, known: Iterable[str], *, insecure: str) -> dict[str, str]:
    """The URL's parameters. `insecure`: the scheme that those for TLS would need."""
    known = tuple(known)
    found: dict[str, str] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name in known:
            found[name] = value
        elif insecure and name in _TLS_OF_REDIS:
            raise ValueError(f"the parameter {name} needs TLS: {insecure}")
        else:
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise ValueError(f"the URL's parameter {name[:40]!r} is not known{_nearest(name, known) or f': {there}'}")
    return found


def _tls(query: Mapping[str, str]) -> dict[str, Any]:
    tls: dict[str, Any] = dict(query)
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path"):
        if name in tls and not os.access(tls[name], os.R_OK):
            raise ValueError(f"{name} {tls[name]!r} is not there, or cannot be read")
    if "ssl_keyfile" in tls and "ssl_certfile" not in tls:
        raise ValueError("ssl_keyfile needs ssl_certfile, the certificate of that key")
    wanted = str(tls.get("ssl_cert_reqs", "required")).lower().removeprefix("cert_")
    if wanted not in CERT_REQS:
        raise ValueError(f"ssl_cert_reqs is one of {', '.join(CERT_REQS)}{_nearest(wanted, CERT_REQS)}")
    # kombu would take the server's name for no concern of ours.
    named = str(tls.get("ssl_check_hostname", "true")).lower()
    if named not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("ssl_check_hostname is true or false")
    checked = wanted != "none" and named in ("true", "1", "yes")
    return tls | {"ssl_cert_reqs": wanted, "ssl_check_hostname": checked}


def _tls_of_redis(query: Mapping[str, str]) -> dict[str, Any]:
    return _tls({name: value for name, value in query.items() if name in _TLS_OF_REDIS})


def _tls_of_amqp(query: Mapping[str, str]) -> dict[str, Any]:
    import ssl  # help and most commands need none of it

    tls = _tls(query)
    files = {name: tls.get(f"ssl_{name}") for name in ("ca_certs", "certfile", "keyfile")}
    # With the key, kombu fills in the name of the host, against which the certificate is checked then.
    named = {"server_hostname": None} if tls["ssl_check_hostname"] else {}
    return {
        "cert_reqs": ssl.VerifyMode[f"CERT_{tls['ssl_cert_reqs'].upper()}"],
        **{k: v for k, v in files.items() if v},
        **named,
    }


def _nearest(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        parse(text)
        return text

    return check


checked_redis = _checked(parse_redis)
"""The URL as it is. Raises ValueError."""
checked_broker = _checked(parse_broker)
"""The same for a broker's."""
