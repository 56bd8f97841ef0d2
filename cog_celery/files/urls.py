"""URLs from outside: the one parser, the one policy on addresses, and the forms that may be shown.

It must not know who uses a URL or what for, and opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote, urljoin, urlsplit

from cog_celery.errors import UrlError, UsageError
from cog_celery.settings import Settings

MAX_URL_LENGTH: Final = 16 << 10
"""The longest http(s) URL. Presigned ones have 2 KB; servers refuse more than 8 KB or so."""

MAX_SHOWN_PATH: Final = 200

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,29}):")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_.])?")
_KEPT = "%/:@!$&'()*+,;=-._~"
"""Characters of a path that stand for themselves; `%` because the path is percent-encoded already."""


@dataclass(frozen=True, slots=True, repr=False)
class HttpUrl:
    """An http or https URL, taken apart once; who connects uses these parts and parses nothing again.

    `host` is ASCII, lower case, without brackets; `target` is the path and query in ASCII; `credentials` is
    `user:password`, which never appears in a form that is shown.
    """

    scheme: str
    host: str
    port: int
    netloc: str
    target: str
    credentials: str | None = None

    @property
    def path(self) -> str:
        """The percent-encoded path."""
        return self.target.partition("?")[0]

    @property
    def public(self) -> str:
        """The URL without user, password, query and fragment."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def shown(self) -> str:
        """`public`, for messages: no longer than a line or two."""
        path = self.path
        return f"{self.scheme}://{self.netloc}{path if len(path) <= MAX_SHOWN_PATH else path[:MAX_SHOWN_PATH] + '…'}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """What must be equal for credentials to be sent along."""
        return self.scheme, self.host, self.port

    def child(self, name: str) -> HttpUrl:
        """The URL of `name`, percent-encoded already, below this one; a query stays."""
        path, mark, query = self.target.partition("?")
        return self._at(f"{path.rstrip('/')}/{name}{mark}{query}")

    def resolve(self, location: str) -> HttpUrl:
        """Where a Location header of this URL's answer points. Raises UrlError.

        `location` is as http.client gives it: bytes read as Latin-1.
        """
        if _UNSAFE.search(location):
            raise UrlError("the Location has control characters")
        # Servers send UTF-8 here, unencoded, though they must not.
        location = quote(location.strip().encode("latin-1", "replace"), safe=_KEPT + "?#[]")
        try:
            url = parse(urljoin(f"{self.scheme}://{self.netloc}{self.target}", location))
        except ValueError:
            raise UrlError("the Location is not a URL") from None
        if url.credentials is None and url.origin == self.origin and self.credentials is not None:
            return url._at(url.target, self.credentials)
        return url

    def _at(self, target: str, credentials: str | None = None) -> HttpUrl:
        return HttpUrl(self.scheme, self.host, self.port, self.netloc, target, credentials or self.credentials)

    def __repr__(self) -> str:
        return f"HttpUrl({self.shown!r})"


def scheme_of(text: str) -> str:
    """The scheme in lower case; empty when there is none."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else ""


def refused_scheme(scheme: str) -> str:
    """The sentence for an input whose URL has another scheme, as producers know it."""
    return f"'{scheme}' is not a valid URL scheme. 'data', 'http', or 'https' is supported."


def parse(text: str) -> HttpUrl:
    """Take an http or https URL apart. Raises UrlError, whose message does not repeat the URL.

    Spaces and characters outside ASCII are encoded; control characters are refused.
    """
    scheme = scheme_of(text)
    if scheme not in ("http", "https"):
        raise UrlError(f"'{scheme}' is not a valid URL scheme. 'http' or 'https' is supported.")
    if len(text) > MAX_URL_LENGTH:
        raise UrlError(f"it is longer than {MAX_URL_LENGTH} characters")
    if _UNSAFE.search(text):
        raise UrlError("it has control characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UrlError("its host or port is not valid") from None
    if port == 0:
        raise UrlError("its port is 0")
    if "\\" in parts.netloc:  # others read it as a slash, and so another host
        raise UrlError("its host is not a valid name")
    user, at, netloc = parts.netloc.rpartition("@")
    if not parts.hostname:
        raise UrlError("it names no host")
    host, shown_host = _host(parts.hostname, "[" in netloc)
    query = f"?{quote(parts.query, safe=_KEPT + '?')}" if parts.query else ""
    return HttpUrl(
        scheme=scheme,
        host=host,
        port=port or (443 if scheme == "https" else 80),
        netloc=shown_host if port is None else f"{shown_host}:{port}",
        target=(quote(parts.path, safe=_KEPT) or "/") + query,
        credentials=unquote(user if ":" in user else f"{user}:") if at else None,
    )


def _host(host: str, bracketed: bool) -> tuple[str, str]:
    if bracketed:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise UrlError("its host is not an IPv6 address") from None
        if address.scope_id:
            raise UrlError("its host is an address with a zone")
        return host, f"[{host}]"
    try:
        host = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise UrlError("its host is not a valid name") from None
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise UrlError("its host is not a valid name")
    return host, host


def redact(text: str) -> str:
    """Any text that should be a URL, in a form for messages: no user, password, query, fragment or data."""
    try:
        return parse(text).shown
    except UrlError:
        scheme = scheme_of(text)
        return f"{scheme}:…" if scheme == "data" or text[len(scheme) :].startswith("://") else "…"


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_REFUSED: Final = (
    # 0.0.0.0 and :: are no server's address: Linux connects them to the machine itself.
    ("an address of the machine itself", _networks("127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128")),
    ("a link-local address", _networks("169.254.0.0/16", "fe80::/10")),
    (
        "the address of a cloud's metadata service",
        # Those that are not link-local: Alibaba, Azure, Oracle; Amazon, Google, Oracle, Scaleway.
        _networks("100.100.100.200", "168.63.129.16", "192.0.0.192")
        + _networks("fd00:ec2::/32", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
    ),
    ("an address that belongs to no server", _networks("224.0.0.0/4", "240.0.0.0/4", "ff00::/8", "64:ff9b:1::/48")),
)
"""Refused always, broadcast with the reserved ones. The last of them holds IPv4 addresses, nobody can tell where."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ASSIGNED: Final = (*_networks("2000::/3", "fc00::/7"), _NAT64)
"""The IPv6 addresses of servers, but for those refused above; all others are reserved."""

_PRIVATE: Final = (
    *_networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24"),
    *_networks("192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *_networks("fc00::/7", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
)
"""Not public. `is_global` says the same of most of them, but not in every version of Python."""


class AddressPolicy:
    """The one policy on addresses: every address passes here when its name is resolved, before it is connected to.

    `addresses` is `cluster` (private networks are allowed) or `public` (they are not). `allow` and `deny` hold host
    names (`*.example.com`: all below it), addresses and networks; `configured` the hosts and ports that the operator
    named. What is denied is refused whatever allows it.
    """

    def __init__(
        self,
        addresses: str = "cluster",
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        configured: Iterable[tuple[str, int]] = (),
    ) -> None:
        self._public = addresses == "public"
        self._allowed = _Places.of(allow)
        self._denied = _Places.of(deny)
        self._configured = frozenset(configured)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The policy of a process: what the operator configured is allowed by that. Raises UsageError."""
        configured = []
        for text in (settings.upload_url, settings.report_setup_run_url):
            if text and text.startswith("s3://"):  # where that is nobody says here
                continue
            try:
                url = parse(text) if text else None
            except UrlError as error:
                raise UsageError(f"the URL {redact(text or '')} cannot be used: {error}") from None
            if url is not None:
                configured.append((url.host, url.port))
        return cls(settings.addresses, settings.allow_addresses, settings.deny_addresses, configured)

    def check(self, host: str, port: int, address: str) -> None:
        """`address` is what `host` was resolved to. Raises UrlError if it is not to be connected to; the message does
        not tell the address, which may be nobody's business outside.
        """
        ip = ipaddress.ip_address(address)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # what goes over the wire
        meant = [ip, *_embedded(ip)]
        if any(self._denied.match(host, one) for one in meant):
            raise UrlError(f"its host {host} is not to be reached from this worker (--deny-address)")
        if (host, port) in self._configured or self._allowed.match(host, ip):
            return
        for one in meant:
            if kind := self._refused(one):
                raise UrlError(f"its host {host} has {kind}, which this worker does not reach (see --allow-address)")

    def _refused(self, ip: _Address) -> str | None:
        for kind, networks in _REFUSED:
            if _within(ip, networks):
                return kind
        if ip.version == 6 and not _within(ip, _ASSIGNED):
            return "an address that belongs to no server"
        if self._public and (_within(ip, _PRIVATE) or not ip.is_global):
            return "no public address"
        return None


@dataclass(frozen=True, slots=True)
class _Places:
    """Host names and networks."""

    names: frozenset[str]
    above: tuple[str, ...]  # with the dot: `.example.com`
    networks: tuple[_Network, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> _Places:
        names: list[str] = []
        above: list[str] = []
        networks: list[_Network] = []
        for text in texts:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError:
                (above if text.startswith("*.") else names).append(text.removeprefix("*").lower().rstrip("."))
        return cls(frozenset(names), tuple(above), tuple(networks))

    def match(self, host: str, ip: _Address) -> bool:
        name = host.rstrip(".")
        return name in self.names or name.endswith(self.above) or _within(ip, self.networks)


def _within(ip: _Address, networks: Iterable[_Network]) -> bool:
    return any(ip in network for network in networks)


def _embedded(ip: _Address) -> list[_Address]:
    """The IPv4 addresses to which a gateway would take an IPv6 packet: NAT64, 6to4, Teredo."""
    if ip.version == 4:
        return []
    found: list[_Address | None] = [ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF))
    return [one for one in found if one is not None]
