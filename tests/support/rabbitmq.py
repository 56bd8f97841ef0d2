"""Starts a RabbitMQ of a test's own: its ports, its port mapper, its home; nothing of it is left afterwards.

It must not know what is sent through it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import amqp

from tests.support.authority import Authority
from tests.support.processes import Child, wait_until
from tests.support.servers import free_port

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
"""Where Debian has them; what is on its PATH would become the user `rabbitmq` first."""
USER, PASSWORD, VHOST = "fleet", "s3cret-of-the-broker", "fleet"
START = 60.0
"""Seconds until it answers at the latest; it takes five."""


def program(name: str) -> str | None:
    """The program, or None where this machine has no RabbitMQ."""
    return shutil.which(str(PROGRAMS / name))


class RabbitMQ:
    """One node with a user and a virtual host of its own; with an authority it speaks TLS on another port."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.tls_port = free_port(), free_port() if authority else 0
        mapper = free_port()
        self._env = self._environment(mapper)
        self._configure(authority)
        mapping = ["epmd", "-address", "127.0.0.1", "-port", str(mapper)]
        # Else the node would start one that outlives it.
        self._mapper = Child("epmd", mapping, log=folder / "epmd.log", env=self._env)
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def _environment(self, mapper: int) -> dict[str, str]:
        folder = self._folder
        # One scheduler that does not spin: the machine is small.
        erlang = "-noinput +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
        return {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ALLOW_INPUT": "1",  # the server is the process that is started, not its child
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
        }

    def _configure(self, authority: Authority | None) -> None:
        rights = {"user": USER, "vhost": VHOST, "configure": ".*", "write": ".*", "read": ".*"}
        definitions = {
            "users": [{"name": USER, "password": PASSWORD, "tags": ""}],
            "vhosts": [{"name": "/"}, {"name": VHOST}],
            "permissions": [rights],
        }
        (self._folder / "definitions.json").write_text(json.dumps(definitions))
        (self._folder / "enabled_plugins").write_text("[].\n")
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"load_definitions = {self._folder / 'definitions.json'}",
            "log.console = true",
            "log.file = false",
        ]
        if authority is not None:
            own, self._client = authority.issue("rabbitmq", "IP:127.0.0.1"), authority.issue("client")
            self._authority = authority
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"listeners.ssl.2 = 127.0.0.2:{self.tls_port}",  # which its certificate does not have
                f"ssl_options.cacertfile = {authority.file}",
                f"ssl_options.certfile = {own.file}",
                f"ssl_options.keyfile = {own.key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = true",
            ]
        (self._folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")

    def url(self, *, user: str = USER, password: str = PASSWORD, vhost: str = VHOST) -> str:
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{vhost}"

    def secure_url(self, *, host: str = "127.0.0.1", ssl_ca_certs: Path | None = None) -> str:
        """By TLS, with a client's certificate."""
        files = {
            "ssl_ca_certs": ssl_ca_certs or self._authority.file,
            "ssl_certfile": self._client.file,
            "ssl_keyfile": self._client.key,
        }
        return f"amqps://{USER}:{PASSWORD}@{host}:{self.tls_port}/{VHOST}?{urlencode(files)}"

    def start(self) -> None:
        """Start it, again if it was there before, and wait until it lets the user in."""
        command = [str(PROGRAMS / "rabbitmq-server")]
        self._child = Child("rabbitmq", command, log=self._folder / "server.log", cwd=self._folder, env=self._env)
        wait_until(self._answers, "RabbitMQ to answer", START, interval=0.1)

    def _answers(self) -> bool:
        self._child.check_running()
        with suppress(OSError, amqp.AMQPError), self.connection():
            return True
        return False

    def connection(self) -> amqp.Connection:
        """A connection of the test's own; a context manager."""
        host = f"127.0.0.1:{self.port}"
        connection = amqp.Connection(host, userid=USER, password=PASSWORD, virtual_host=VHOST, connect_timeout=5)
        connection.connect()
        return connection

    def has_queue(self, name: str) -> bool:
        with self.connection() as connection:
            try:
                connection.channel().queue_declare(name, passive=True)
            except amqp.NotFound:
                return False
            return True

    def queues(self) -> dict[str, str]:
        """All queues, and their arguments as RabbitMQ writes them."""
        command = [str(PROGRAMS / "rabbitmqctl"), "--quiet", "list_queues", "-p", VHOST, "--no-table-headers"]
        run = subprocess.run(
            [*command, "name", "arguments"],
            env=self._env,
            cwd=self._folder,
            text=True,
            capture_output=True,
            check=True,
        )
        return dict(line.split("\t") for line in run.stdout.splitlines() if line)

    def kill(self) -> None:
        self._child.kill()
        self._child.process.wait()

    def shut_down(self) -> None:
        """As its operator does: it takes leave of its clients."""
        self._child.process.send_signal(signal.SIGTERM)
        assert self._child.wait(30) == 0

    def text(self) -> str:
        """What it wrote to its log."""
        return self._child.text()

    def stop(self) -> None:
        for child in (getattr(self, "_child", None), self._mapper):
            if child is not None:
                child.discard()
