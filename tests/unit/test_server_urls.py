"""URLs of Redis, of its sentinels, and of brokers: what they say, and what is said of those that say nothing useful."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cog_celery.celery import configuration
from cog_celery.errors import UsageError
from cog_celery.server_urls import RedisUrl, parse_broker, parse_redis
from cog_celery.settings import Settings, masked_url

SECRET = "hunter2"


@pytest.fixture
def pem(tmp_path: Path) -> str:
    file = tmp_path / "ca file.pem"
    file.write_text("PEM")
    return str(file)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("redis://host", RedisUrl((("host", 6379),))),
        ("redis://host:1/2", RedisUrl((("host", 1),), database=2)),
        ("redis://host/2?db=3", RedisUrl((("host", 6379),), database=3)),
        ("redis://[::1]:7/", RedisUrl((("::1", 7),))),
        ("redis://:p%40ss@host", RedisUrl((("host", 6379),), login={"password": "p@ss"})),
        ("redis://u%3A:p@host", RedisUrl((("host", 6379),), login={"username": "u:", "password": "p"})),
        ("unix:///run/my%20redis.sock?db=1", RedisUrl(path="/run/my redis.sock", database=1)),
        ("unix://u:p@/run/r.sock", RedisUrl(path="/run/r.sock", login={"username": "u", "password": "p"})),
        ("redis+sentinel://a,b:1/main", RedisUrl((("a", 26379), ("b", 1)), service="main")),
        (
            "redis+sentinel://u:p@a,[::1]:5/main/3?sentinel_password=s&sentinel_username=w",
            RedisUrl(
                (("a", 26379), ("::1", 5)),
                service="main",
                database=3,
                login={"username": "u", "password": "p"},
                sentinel_login={"username": "w", "password": "s"},
            ),
        ),
    ],
)
def test_a_url_of_redis_means_what_redis_py_s_does_and_sentinels_beside(url: str, meant: RedisUrl) -> None:
    assert parse_redis(url) == meant


def test_certificates_are_named_as_in_redis_py_and_verified_unless_told_otherwise(pem: str) -> None:
    assert parse_redis("rediss://host").tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    path = pem.replace(" ", "%20")
    assert parse_redis(f"rediss://host?ssl_ca_certs={path}&ssl_certfile={path}&ssl_keyfile={path}").tls == {
        "ssl_ca_certs": pem,
        "ssl_certfile": pem,
        "ssl_keyfile": pem,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
    }
    for none in ("none", "NONE", "CERT_NONE"):
        assert parse_redis(f"rediss://host?ssl_cert_reqs={none}").tls == {
            "ssl_cert_reqs": "none",
            "ssl_check_hostname": False,
        }
    assert parse_redis("rediss://host?ssl_check_hostname=false").tls == {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": False,
    }


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sentinel://a:1/main", ["redis+sentinel://", "did you mean"]),
        ("redis-sentinel://a/main", ["did you mean redis+sentinel?"]),
        ("redis+sentinel://a,b", ["how its sentinels call the primary", "/NAME/0"]),
        ("redis+sentinel://a/main/one", ["a primary's name and the number of a database"]),
        ("redis+sentinel://a/main/1/2", ["a primary's name and the number of a database"]),
        ("redis+sentinel://a,:1/main", ["':1' is not a host and port"]),
        ("redis+sentinel://a,b:port/main", ["'b:port' is not a host and port"]),
        ("redis://a,b", ["one host is needed", "redis+sentinel://"]),
        ("redis://a?ssl_ca_certs=x", ["ssl_ca_certs needs TLS", "rediss://"]),
        ("rediss://a?ssl_ca_cert=x", ["'ssl_ca_cert'", "did you mean ssl_ca_certs?"]),
        ("rediss://a?ssl_ca_certs=/nowhere/ca.pem", ["ssl_ca_certs '/nowhere/ca.pem'", "cannot be read"]),
        ("rediss://a?ssl_cert_reqs=requierd", ["ssl_cert_reqs is one of", "did you mean required?"]),
        ("rediss://a?ssl_check_hostname=maybe", ["ssl_check_hostname is true or false"]),
        ("redis://a?socket_timeout=1", ["'socket_timeout'", "db"]),
        ("redis://a?sentinel_password=x", ["'sentinel_password'"]),
        ("redis://a/?db=one", ["a database is a number"]),
        (f"redis://:{SECRET}#x@a", ["%23"]),
        ("redis://a:0", ["port is 0"]),
        ("redis://", ["names no host"]),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_what_to_write(url: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.load({"redis_url": url}, {})
    for word in ["--redis-url", *words]:
        assert word in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sentinel://a:1;sentinel://b:1", ["redis+sentinel://", "/NAME/0"]),
        ("redis+sentinel://a", ["how its sentinels call the primary"]),
        ("amqp://a?ssl_ca_certs=x", ["ssl_ca_certs needs TLS", "amqps://"]),
        ("amqps://a?ca_certs=x", ["'ca_certs'", "did you mean ssl_ca_certs?"]),
        ("amqps://a;amqps://b", ["one amqps:// host is needed"]),
        ("amqp://a?heartbeat=5", ["'heartbeat'"]),
        ("amqp:///vhost", ["names no host"]),
        ("amqp://a;b", ["URL"]),
    ],
)
def test_a_broker_s_url_that_cannot_be_used_is_refused_with_what_to_write(url: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Settings.load({"broker_url": url}, {})
    for word in ["--broker-url", *words]:
        assert word in str(caught.value)


def test_kombu_is_told_of_redis_in_its_own_words_and_verifies_certificates() -> None:
    broker = parse_broker("redis://u:p%40@host:1/2")
    assert (broker.url, broker.redis, broker.tls) == ("redis://u:p%40@host:1/2", True, None)
    assert parse_broker("unix:///run/redis.sock?db=2").url == "redis+socket:///run/redis.sock?virtual_host=2"
    broker = parse_broker("rediss://host")
    assert broker.url == "rediss://host:6379/0"
    assert broker.tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


def test_kombu_is_told_of_sentinels_in_its_own_words(pem: str) -> None:
    url = f"rediss+sentinel://u:p@a,b:1/main/3?sentinel_password=s&ssl_ca_certs={pem.replace(' ', '%20')}"
    options = configuration(Settings(broker_url=url))
    assert options["broker_url"] == "sentinel://u:p@a:26379/3;sentinel://u:p@b:1/3"
    assert options["broker_use_ssl"]["ssl_ca_certs"] == pem
    transport = options["broker_transport_options"]
    assert transport["master_name"] == "main"
    assert transport["global_keyprefix"] == "cog-celery:broker:"
    sentinels = transport["sentinel_kwargs"]
    assert (sentinels["password"], sentinels["ssl"], sentinels["ssl_ca_certs"]) == ("s", True, pem)


def test_py_amqp_is_told_to_verify_certificate_and_host(pem: str) -> None:
    """By itself it verifies the certificate, and not whose it is."""
    assert parse_broker("amqps://host").tls == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}
    path = pem.replace(" ", "%20")
    broker = parse_broker(f"amqps://u:p@host/v?ssl_ca_certs={path}&ssl_certfile={path}&ssl_keyfile={path}")
    assert broker.url == "amqps://u:p@host/v"
    assert broker.tls == {
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": pem,
        "certfile": pem,
        "keyfile": pem,
        "server_hostname": None,
    }
    assert parse_broker("amqps://host?ssl_cert_reqs=none").tls == {"cert_reqs": ssl.CERT_NONE}


def test_other_brokers_are_left_as_they_are() -> None:
    for url in ("amqp://a;amqp://b", "sqs://x:y@", "filesystem://"):
        assert parse_broker(url).url == url


def test_no_secret_of_a_sentinel_url_is_shown() -> None:
    url = f"redis+sentinel://u:{SECRET}@a:1,b:2/main/0?sentinel_password={SECRET}"
    assert masked_url(url) == "redis+sentinel://***@a:1,b:2/main/0?***"
    assert SECRET not in repr(Settings(redis_url=url))
    assert SECRET not in repr(parse_redis(url)) and SECRET not in repr(parse_broker(url))


@given(st.text(max_size=60))
def test_no_text_is_worse_than_refused(text: str) -> None:
    for scheme in ("redis://", "rediss+sentinel://", "unix://", "amqps://", ""):
        for parse in (parse_redis, parse_broker):
            try:
                parse(scheme + text)
            except ValueError:
                continue
