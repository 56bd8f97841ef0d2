from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cog_celery.errors import UrlError
from cog_celery.urls import HttpUrl, check_address, parse, redact, refused_scheme, scheme_of

SECRET = "hunter2secret"


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("HTTPS://Example.COM/a/b?c=d#e", "example.com", 443, "/a/b?c=d"),
        ("http://example.com:8080/a b/é?q=ü x", "example.com", 8080, "/a%20b/%C3%A9?q=%C3%BC%20x"),
        ("http://example.com?x=1", "example.com", 80, "/?x=1"),
        ("http://[::1]:81/a%2Fb", "::1", 81, "/a%2Fb"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "/"),
        ("http://my_service:80/", "my_service", 80, "/"),
    ],
)
def test_a_url_is_taken_apart_once(text: str, host: str, port: int, target: str) -> None:
    url = parse(text)
    assert (url.host, url.port, url.target) == (host, port, target)
    assert parse(url.public).path == url.path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "http:",
        "http:///path",
        "http:/example.com",
        "http://:80/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:8o/",
        "http://exa mple.com/",
        "http://exam\\ple.com/",
        "http://user@exam\\@ple.com/",
        "http://%65xample.com/",
        "http://a..b/",
        "http://" + "a" * 64 + "/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.x]/",
        "http://example.com/\r\nX: y",
        "http://example.com/\0",
        "http://example.com/\ud800",
        "http://example.com/" + "a" * 20_000,
        "javascript:alert(1)",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_http_url_is_refused(text: str) -> None:
    with pytest.raises(UrlError):
        parse(text)


def test_forms_for_people_hold_nothing_secret() -> None:
    url = parse(f"https://user:{SECRET}@example.com:444/a?sig={SECRET}#{SECRET}")
    assert url.credentials == f"user:{SECRET}"
    assert url.public == "https://example.com:444/a"
    assert url.shown == url.public
    assert SECRET not in repr(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://u:{SECRET}@h/p?q={SECRET}#{SECRET}", "http://h/p"),
        (f"http://u:{SECRET}@:0/", "http:…"),
        (f"ftp://u:{SECRET}@h/", "ftp:…"),
        (f"data:text/plain,{SECRET}", "data:…"),
        (f"user:{SECRET}@h", "…"),
        (SECRET, "…"),
        ("", "…"),
    ],
)
def test_any_text_can_be_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_no_user_query_or_fragment_survives_redaction(user: str, query: str, fragment: str) -> None:
    shown = redact(f"http://{SECRET}{user}@host/path?{SECRET}{query}#{SECRET}{fragment}")
    # A slash and the like end the host before the `@`: then what was meant as a user is the host.
    assert SECRET not in shown or set("/?#") & set(user)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for candidate in (text, "http://" + text, "http://host/" + text):
        redact(candidate)
        try:
            url = parse(candidate)
        except UrlError:
            continue
        assert url.target.isascii() and url.target.isprintable() and " " not in url.target
        assert url.host.isascii() and url.netloc.isprintable()


def test_a_long_path_is_cut_in_messages_only() -> None:
    url = parse("http://example.com/" + "a" * 1000)
    assert len(url.shown) < 250
    assert len(url.public) > 1000


def base() -> HttpUrl:
    return parse("https://user:pw@example.com/a/b?x=1")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://other.example/z?sig=1", "https://other.example/z"),
        ("/z", "https://example.com/z"),
        ("z", "https://example.com/a/z"),
        ("?y=2", "https://example.com/a/b"),
        ("//other.example/z", "https://other.example/z"),
        (" /a b ", "https://example.com/a%20b"),
        ("/é".encode().decode("latin-1"), "https://example.com/%C3%A9"),
    ],
)
def test_a_location_is_resolved(location: str, target: str) -> None:
    assert base().resolve(location).public == target


@pytest.mark.parametrize(
    "location", ["ftp://h/", "javascript:alert(1)", "data:,x", "file:///etc/passwd", "/a\r\nb", "http://["]
)
def test_a_bad_location_is_refused(location: str) -> None:
    with pytest.raises(UrlError):
        base().resolve(location)


def test_credentials_stay_at_their_origin() -> None:
    assert base().resolve("/z").credentials == "user:pw"
    assert base().resolve("https://example.com/z").credentials == "user:pw"
    assert base().resolve("http://example.com/z").credentials is None
    assert base().resolve("https://example.com:444/z").credentials is None
    assert base().resolve("https://other.example/z").credentials is None
    assert base().resolve("https://me:too@other.example/z").credentials == "me:too"


@pytest.mark.parametrize(
    ("text", "child"),
    [
        ("http://h", "http://h/n.png"),
        ("http://h/a/", "http://h/a/n.png"),
        ("http://h/a?sig=1", "http://h/a/n.png"),
    ],
)
def test_a_child_is_below_its_url(text: str, child: str) -> None:
    assert parse(text).child("n.png").public == child
    assert parse("http://h/a?sig=1").child("n.png").target == "/a/n.png?sig=1"


def test_the_scheme_can_be_told() -> None:
    assert scheme_of("DATA:,x") == "data"
    assert scheme_of("ftp://h") == "ftp"
    assert scheme_of("no scheme: here") == ""
    assert refused_scheme("ftp") == "'ftp' is not a valid URL scheme. 'data', 'http', or 'https' is supported."


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_addresses_of_no_server_are_refused(address: str) -> None:
    with pytest.raises(UrlError, match=r"h\.example"):
        check_address("h.example", address)


def test_addresses_of_servers_pass() -> None:
    check_address("h", "192.0.2.1")
    check_address("h", "2001:db8::1")
