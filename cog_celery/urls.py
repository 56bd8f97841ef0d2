"""URLs from outside: the one parser, the one policy on addresses, and the forms that may be shown.

It must not know who uses a URL or what for, and opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote, urljoin, urlsplit

from cog_celery.errors import UrlError

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


def check_address(host: str, address: str) -> None:
    """The one policy on addresses: every address passes here when its name is resolved, before it is connected to.

    Redirects too. Raises UrlError for an address that is not to be reached.
    """
    ip = ipaddress.ip_address(address)
    # 0.0.0.0 and :: are no server's address; Linux connects them to the machine itself.
    if ip.is_unspecified or ip.is_multicast:
        raise UrlError(f"its host {host} has the address {ip}, which belongs to no server")
