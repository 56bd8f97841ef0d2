from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cog_celery.errors import UrlError, UsageError
from cog_celery.files.urls import AddressPolicy, HttpUrl, parse, redact, refused_scheme, scheme_of
from cog_celery.settings import Settings

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


# The policy on addresses

HOST = "files.example"
MACHINE, LINK = "an address of the machine itself", "a link-local address"
METADATA, NOBODY = "the address of a cloud's metadata service", "an address that belongs to no server"
PRIVATE = "no public address"


def verdict(policy: AddressPolicy, address: str, host: str = HOST, port: int = 80) -> str:
    """`allowed`, or why not."""
    try:
        policy.check(host, port, address)
    except UrlError as error:
        assert str(error).startswith(f"its host {host} ")
        assert address == host or address not in str(error)
        return str(error).removeprefix(f"its host {host} has ").partition(", which")[0]
    return "allowed"


@pytest.mark.parametrize(
    ("address", "cluster", "public"),
    [
        # Of servers
        ("8.8.8.8", "allowed", "allowed"),
        ("2001:4860:4860::8888", "allowed", "allowed"),
        # Private
        ("10.0.0.1", "allowed", PRIVATE),
        ("172.31.255.255", "allowed", PRIVATE),
        ("192.168.1.1", "allowed", PRIVATE),
        ("100.64.0.1", "allowed", PRIVATE),  # carriers
        ("198.18.0.1", "allowed", PRIVATE),  # benchmarks
        ("192.0.2.1", "allowed", PRIVATE),  # documentation
        ("198.51.100.1", "allowed", PRIVATE),
        ("203.0.113.1", "allowed", PRIVATE),
        ("192.0.0.8", "allowed", PRIVATE),
        ("fc00::1", "allowed", PRIVATE),
        ("fd12:3456::1", "allowed", PRIVATE),
        ("2001:db8::1", "allowed", PRIVATE),
        ("3fff::1", "allowed", PRIVATE),
        # The machine itself
        ("127.0.0.1", MACHINE, MACHINE),
        ("127.255.255.254", MACHINE, MACHINE),
        ("0.0.0.0", MACHINE, MACHINE),
        ("0.1.2.3", MACHINE, MACHINE),
        ("::1", MACHINE, MACHINE),
        ("::", MACHINE, MACHINE),
        # Its link, and clouds
        ("169.254.169.254", LINK, LINK),
        ("169.254.170.2", LINK, LINK),
        ("fe80::1", LINK, LINK),
        ("fe80::1%2", LINK, LINK),
        ("febf::1", LINK, LINK),
        ("100.100.100.200", METADATA, METADATA),
        ("168.63.129.16", METADATA, METADATA),
        ("192.0.0.192", METADATA, METADATA),
        ("fd00:ec2::254", METADATA, METADATA),
        ("fd00:ec2::23", METADATA, METADATA),
        ("fd20:ce::254", METADATA, METADATA),
        # Nobody's
        ("224.0.0.1", NOBODY, NOBODY),
        ("239.255.255.250", NOBODY, NOBODY),
        ("255.255.255.255", NOBODY, NOBODY),
        ("240.0.0.1", NOBODY, NOBODY),
        ("ff02::1", NOBODY, NOBODY),
        ("fec0::1", NOBODY, NOBODY),
        ("100::1", NOBODY, NOBODY),
        ("4000::1", NOBODY, NOBODY),
        # IPv4 within IPv6: mapped, compatible, translated, NAT64, 6to4, Teredo
        ("::ffff:8.8.8.8", "allowed", "allowed"),
        ("::ffff:10.0.0.1", "allowed", PRIVATE),
        ("::ffff:127.0.0.1", MACHINE, MACHINE),
        ("::ffff:169.254.169.254", LINK, LINK),
        ("::ffff:a9fe:a9fe", LINK, LINK),
        ("::ffff:0.0.0.0", MACHINE, MACHINE),
        ("::ffff:224.0.0.1", NOBODY, NOBODY),
        ("::127.0.0.1", NOBODY, NOBODY),
        ("::ffff:0:127.0.0.1", NOBODY, NOBODY),
        ("64:ff9b::8.8.8.8", "allowed", "allowed"),
        ("64:ff9b::10.0.0.1", "allowed", PRIVATE),
        ("64:ff9b::127.0.0.1", MACHINE, MACHINE),
        ("64:ff9b::169.254.169.254", LINK, LINK),
        ("64:ff9b:1::8.8.8.8", NOBODY, NOBODY),
        ("2002:808:808::1", "allowed", PRIVATE),
        ("2002:7f00:1::1", MACHINE, PRIVATE),
        ("2002:a9fe:a9fe::1", LINK, PRIVATE),
        ("2001:0:4136:e378:8000:63bf:f7f7:f7f7", "allowed", PRIVATE),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", MACHINE, PRIVATE),
        ("2001:0:7f00:1:8000:63bf:f7f7:f7f7", MACHINE, PRIVATE),
    ],
)
def test_addresses_are_allowed_or_refused(address: str, cluster: str, public: str) -> None:
    assert verdict(AddressPolicy("cluster"), address) == cluster
    assert verdict(AddressPolicy("public"), address) == public
    assert verdict(AddressPolicy("public", allow=["0.0.0.0/0", "::/0"]), address) == "allowed"
    assert "(--deny-address)" in verdict(AddressPolicy(allow=[HOST], deny=["0.0.0.0/0", "::/0"]), address)


@pytest.mark.parametrize(
    ("entry", "host", "address", "matches"),
    [
        ("files.example", "files.example", "127.0.0.1", True),
        ("files.example", "files.example.", "127.0.0.1", True),
        ("files.example", "a.files.example", "127.0.0.1", False),
        ("files.example", "other.example", "127.0.0.1", False),
        ("*.files.example", "a.files.example", "127.0.0.1", True),
        ("*.files.example", "a.b.files.example", "127.0.0.1", True),
        ("*.files.example", "files.example", "127.0.0.1", False),
        ("*.files.example", "evilfiles.example", "127.0.0.1", False),
        ("*.files.example", "a.files.example.evil.example", "127.0.0.1", False),
        ("127.0.0.1/32", "any.example", "127.0.0.1", True),
        ("127.0.0.0/8", "any.example", "127.9.9.9", True),
        ("127.0.0.1", "any.example", "127.0.0.2", False),
        ("127.0.0.0/8", "any.example", "::ffff:127.0.0.1", True),
        ("127.0.0.0/8", "any.example", "::1", False),
        ("::1/128", "any.example", "::1", True),
    ],
)
def test_names_match_by_the_host_and_networks_by_the_address(
    entry: str, host: str, address: str, matches: bool
) -> None:
    assert (verdict(AddressPolicy(allow=[entry]), address, host) == "allowed") is matches
    denied = verdict(AddressPolicy(allow=["0.0.0.0/0", "::/0"], deny=[entry]), address, host)
    assert (denied != "allowed") is matches


def test_a_network_is_denied_in_all_its_forms() -> None:
    policy = AddressPolicy(allow=["::/0"], deny=["10.0.0.0/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::1"):
        assert "(--deny-address)" in verdict(policy, address)
    assert verdict(policy, "64:ff9b::11.1.2.3") == "allowed"


def test_a_form_within_ipv6_is_not_allowed_by_the_ipv4_address_that_it_leads_to() -> None:
    assert verdict(AddressPolicy(allow=["127.0.0.0/8"]), "64:ff9b::127.0.0.1") == MACHINE


def test_what_the_operator_configured_is_allowed_at_its_port_alone() -> None:
    settings = Settings(
        upload_url=f"http://u:{SECRET}@files.local/up?x", report_setup_run_url="https://[::1]:8443/setup"
    )
    policy = AddressPolicy.of(settings)
    assert verdict(policy, "127.0.0.1", "files.local", 80) == "allowed"
    assert verdict(policy, "127.0.0.1", "files.local", 81) == MACHINE
    assert verdict(policy, "127.0.0.1", "other.local", 80) == MACHINE
    assert verdict(policy, "::1", "::1", 8443) == "allowed"
    assert verdict(policy, "::1", "::1", 443) == MACHINE
    denying = AddressPolicy.of(msgspec.structs.replace(settings, deny_addresses=("files.local",)))
    assert "(--deny-address)" in verdict(denying, "127.0.0.1", "files.local", 80)


def test_settings_make_the_policy() -> None:
    assert verdict(AddressPolicy.of(Settings()), "10.0.0.1") == "allowed"
    assert verdict(AddressPolicy.of(Settings(addresses="public")), "10.0.0.1") == PRIVATE
    allowing = Settings(addresses="public", allow_addresses=("10.0.0.0/8",), deny_addresses=("10.0.0.1/32",))
    assert verdict(AddressPolicy.of(allowing), "10.0.0.2") == "allowed"
    assert "(--deny-address)" in verdict(AddressPolicy.of(allowing), "10.0.0.1")
    with pytest.raises(UsageError) as caught:
        AddressPolicy.of(Settings(upload_url=f"http://u:{SECRET}@a..b/"))
    assert SECRET not in str(caught.value)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_its_mapped_form(address: ipaddress.IPv4Address) -> None:
    for policy in (AddressPolicy("cluster"), AddressPolicy("public")):
        assert verdict(policy, str(address)) == verdict(policy, f"::ffff:{address}")
        if verdict(policy, str(address)) != "allowed":
            assert verdict(policy, f"64:ff9b::{address}") != "allowed"


@given(st.ip_addresses())
def test_a_public_policy_allows_public_addresses_alone(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if verdict(AddressPolicy("public"), str(address)) == "allowed":
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        assert (mapped or address).is_global and not address.is_multicast
        assert verdict(AddressPolicy("cluster"), str(address)) == "allowed"
