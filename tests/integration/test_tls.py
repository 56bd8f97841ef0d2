"""TLS and passwords: a server that deploy/redis/start.sh started, whom it lets in, and what is said to the others."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from click.testing import CliRunner
from kombu.exceptions import OperationalError

from cog_celery.celery import app, configuration
from cog_celery.cli import main as cli
from cog_celery.delivery.link import Link
from cog_celery.errors import ServerLost
from cog_celery.settings import Settings
from tests.conftest import missing
from tests.support.authority import Authority, Certificate
from tests.support.fleet import Fleet
from tests.support.processes import Child, wait_until
from tests.support.producer import succeeded
from tests.support.servers import PASSWORD, START, binary, free_port, role_variables

pytestmark = pytest.mark.ours

QUEUE = "tls"


@dataclass(frozen=True)
class SecureServer:
    """One that speaks TLS alone, and only with clients of the authority's; `client` operates it."""

    port: int
    url: str
    client: redis.Redis
    authority: Authority
    certificate: Certificate
    variables: dict[str, str]
    child: Child

    def parameters(self, **changed: object) -> str:
        """The end of a URL; None leaves one out."""
        own = {
            "ssl_ca_certs": self.authority.file,
            "ssl_certfile": self.certificate.file,
            "ssl_keyfile": self.certificate.key,
            **changed,
        }
        return "&".join(f"{name}={quote(str(value))}" for name, value in own.items() if value is not None)

    def at(self, user: str, host: str = "127.0.0.1", database: int = 0, **changed: object) -> str:
        return f"rediss://{user}:{PASSWORD}@{host}:{self.port}/{database}?{self.parameters(**changed)}"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    if binary("redis") is None:
        missing("a redis-server on PATH")
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    own, certificate = authority.issue("server", "IP:127.0.0.1"), authority.issue("client")
    port = free_port()
    variables = role_variables(QUEUE, "response-* cancel-* tls-response-* tls-cancel-*") | {
        "REDIS_PORT": str(port),
        "REDIS_TLS_CERT_FILE": str(own.file),
        "REDIS_TLS_KEY_FILE": str(own.key),
        "REDIS_TLS_CA_FILE": str(authority.file),
        "REDIS_SERVER": str(binary("redis")),
        "REDIS_DATABASES": "0 1",
    }
    command = ["sh", str(START), "--dir", str(folder)]
    child = Child("start.sh", command, log=folder / "redis.log", env={**os.environ, **variables})
    client = redis.Redis(
        port=port,
        host="127.0.0.1",
        ssl=True,
        username="admin",
        password=PASSWORD,
        protocol=2,
        decode_responses=True,
        ssl_ca_certs=str(authority.file),
        ssl_certfile=str(certificate.file),
        ssl_keyfile=str(certificate.key),
    )

    def answers() -> bool:
        child.check_running()
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    try:
        wait_until(answers, "the server to answer")
        server = SecureServer(port, "", client, authority, certificate, variables, child)
        yield server
    finally:
        client.close()
        child.discard()


def run(*words: str, url: str) -> Any:
    return CliRunner().invoke(cli.cli, list(words), env={"REDIS_URL": url, "COG_CELERY_QUEUE": None})


def test_a_fleet_works_by_tls_with_certificates_and_users_of_its_own_and_another_database_for_the_broker(
    secure: SecureServer, tmp_path: Path
) -> None:
    with Fleet(secure, tmp_path, "modes", queue=QUEUE, turn=0, lease=2) as one:
        for role, start in (("bridge", one.start_bridge), ("worker", one.start_worker)):
            start(env={"REDIS_URL": secure.at(role), "COG_CELERY_BROKER_URL": secure.at(role, database=1)})
        one.wait_ready(1)
        assert one.producer.predict({"mode": "hello"}) == succeeded("hello world")
        sent = run("send", "--queue", QUEUE, "-i", "mode=hello", "--output", "json", url=secure.at("producer"))
        assert sent.exit_code == 0 and json.loads(sent.stdout)["output"] == "hello world", sent.output

        def states() -> list[str]:
            status = run("status", "--queue", QUEUE, "--output", "json", url=secure.at("monitor"))
            [queue] = json.loads(status.stdout)["queues"]
            return [process["state"] for process in queue["processes"]]

        wait_until(lambda: states() == ["ready", "ready"], "status to show both", interval=0.2)
        assert not secure.client.keys("cog-celery:broker:*"), "tickets go by another database"
        for child in one.children:
            assert PASSWORD not in child.text().split() and f":{PASSWORD}@" not in child.text()


def test_start_sh_answers_health_checks_and_leaves_no_password_with_the_server(secure: SecureServer) -> None:
    ping = ["sh", str(START), "--ping"]
    env = {**os.environ, **secure.variables}
    certificate = {
        "REDIS_TLS_CERT_FILE": str(secure.certificate.file),
        "REDIS_TLS_KEY_FILE": str(secure.certificate.key),
    }
    assert subprocess.run(ping, env=env | certificate, check=False).returncode == 0
    wrong = {"REDIS_MONITOR_PASSWORD": "another"}
    assert subprocess.run(ping, env=env | wrong, check=False, capture_output=True).returncode != 0
    environment = Path(f"/proc/{secure.child.pid}/environ").read_bytes()
    assert b"_PASSWORD" not in environment
    config = secure.client.config_get("*")
    assert (config["appendonly"], config["maxmemory-policy"]) == ("yes", "noeviction")
    assert set(str(config["notify-keyspace-events"])) == set("K$")


def refusal(url: str, words: str = "") -> str:
    """What a Link says, and `check` with it; `words`: what of it both say, where it can be said in two ways."""
    with closing(Link(url, "test")) as link, pytest.raises(ServerLost) as caught:
        link.call("PING")
    text = str(caught.value)
    assert PASSWORD not in text.split()
    found = run("check", "--output", "json", url=url)
    assert found.exit_code == 1
    assert words in text and (words or text.removeprefix("Redis is out of reach: ")) in found.stdout
    return text


def test_what_is_wrong_with_certificates_is_said_in_one_sentence(secure: SecureServer, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "nobody's authority")
    theirs = stranger.issue("client")
    assert refusal(secure.at("worker", ssl_ca_certs=stranger.file)) == (
        "Redis is out of reach: its certificate is not trusted (self-signed certificate in certificate chain): "
        "name its authority with ssl_ca_certs in the URL"
    )
    assert "its certificate is another host's" in refusal(secure.at("worker", host="localhost"))
    refusal(secure.at("worker", ssl_certfile=None, ssl_keyfile=None), "a certificate of ours")
    refusal(secure.at("worker", ssl_certfile=theirs.file, ssl_keyfile=theirs.key), "certificate")


def test_a_fleet_that_trusts_nobody_there_says_so_once(secure: SecureServer, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    with Fleet(secure, tmp_path, "modes", queue=QUEUE, lease=1) as one:
        url = secure.at("worker", ssl_ca_certs=stranger.file)
        children = [one.start_bridge(env={"REDIS_URL": url}), one.start_worker(env={"REDIS_URL": url})]
        wait_until(lambda: all("is not trusted" in child.text() for child in children), "both to say so", 20)
        time.sleep(1.5)
        for child in children:
            said = child.text()
            assert said.count("its certificate is not trusted") == 1, said
            assert "Traceback" not in said and f":{PASSWORD}@" not in said


def test_the_broker_verifies_what_redis_does(secure: SecureServer, tmp_path: Path) -> None:
    """kombu by itself would trust anybody who answers at rediss://."""
    stranger = Authority(tmp_path)
    for url, trusted in ((secure.at("worker"), True), (secure.at("worker", ssl_ca_certs=stranger.file), False)):
        options = configuration(Settings(broker_url=url))
        with app.connection_for_write(
            options["broker_url"], ssl=options["broker_use_ssl"], transport_options=options["broker_transport_options"]
        ) as connection:
            if trusted:
                assert connection.default_channel.client.ping()
            else:
                with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
                    connection.default_channel.client.ping()


@contextmanager
def secure_sentinel(secure: SecureServer, folder: Path) -> Iterator[int]:
    """One sentinel, by TLS and with a password of its own; its port."""
    port, file = free_port(), folder / "sentinel.conf"
    own = secure.authority.issue("sentinel", "IP:127.0.0.1")
    file.write_text(
        f"port 0\ntls-port {port}\nbind 127.0.0.1\ndir {folder}\ntls-replication yes\ntls-auth-clients yes\n"
        f"tls-cert-file {own.file}\ntls-key-file {own.key}\ntls-ca-cert-file {secure.authority.file}\n"
        f"requirepass sentinels-word\n"
        f"sentinel monitor main 127.0.0.1 {secure.port} 1\n"
        f"sentinel auth-user main sentinel\nsentinel auth-pass main {PASSWORD}\n"
    )
    child = Child("sentinel", [str(binary("redis")), str(file), "--sentinel"], log=folder / "log", env=os.environ)
    try:
        wait_until(lambda: "+monitor" in child.text(), "the sentinel")
        yield port
    finally:
        child.discard()


def test_a_replica_that_start_sh_has_started_follows_by_tls_and_as_a_user_of_its_own(
    secure: SecureServer, tmp_path: Path
) -> None:
    port = free_port()
    variables = secure.variables | {"REDIS_PORT": str(port), "REDIS_PRIMARY": f"127.0.0.1 {secure.port}"}
    command = ["sh", str(START), "--dir", str(tmp_path), "--repl-diskless-sync-delay", "0"]
    child = Child("start.sh", command, log=tmp_path / "log", env={**os.environ, **variables})
    try:
        secure.client.set("response-followed", "yes")
        address = f"rediss://admin:{PASSWORD}@127.0.0.1:{port}/0?{secure.parameters()}"
        with redis.Redis.from_url(address, protocol=2, decode_responses=True) as replica:

            def followed() -> bool:
                child.check_running()
                try:
                    return bool(replica.get("response-followed") == "yes")
                except redis.ConnectionError:
                    return False

            wait_until(followed, "the replica to have it", 20)
        assert f"it is a replica of 127.0.0.1:{secure.port}" in refusal(
            f"rediss://worker:{PASSWORD}@127.0.0.1:{port}/0?{secure.parameters()}", "replica"
        )
        assert PASSWORD.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")
    finally:
        child.discard()


def test_sentinels_are_reached_by_tls_and_with_a_password_of_their_own(secure: SecureServer, tmp_path: Path) -> None:
    with secure_sentinel(secure, tmp_path) as port:
        place = f"rediss+sentinel://worker:{PASSWORD}@127.0.0.1:{port}/main/1?{secure.parameters()}"
        with closing(Link(place, "test")) as link, pytest.raises(ServerLost) as caught:
            link.call("PING")
        assert "Authentication required" in str(caught.value)
        url = place + "&sentinel_password=sentinels-word"
        wait_until(lambda: _answers(url), "the sentinel to know the server")
        options = configuration(Settings(broker_url=url))
        with app.connection_for_write(
            options["broker_url"], ssl=options["broker_use_ssl"], transport_options=options["broker_transport_options"]
        ) as connection:
            client = connection.default_channel.client
            assert client.ping()
            assert client.connection_pool.get_master_address() == ("127.0.0.1", secure.port)


def _answers(url: str) -> bool:
    with closing(Link(url, "test")) as link:
        try:
            return bool(link.call("CLIENT", "ID"))
        except ServerLost:
            return False
