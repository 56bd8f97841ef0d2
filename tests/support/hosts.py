"""Hosts of a test's own, on a network of their own: namespaces at one switch, whose cables are pulled and whose packets
are lost or late, when that is told.

It must not know what runs on them. Nothing of it is in the network of this machine, and it is gone with its last
process. It needs root, iproute2 and nftables.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import redis

from tests.support.processes import Child, wait_until
from tests.support.servers import binary

PREFIX = "10.77.0"
"""The first three parts of all addresses."""
REDIS_PORT = 6379

_TRIED = """
ip link add one type veth peer name two
ip link add switch type bridge
nft add table bridge fault
nft 'add chain bridge fault c { type filter hook forward priority 0; }'
nft add rule bridge fault c numgen random mod 1000 '<' 1 drop
tc qdisc add dev one root tbf rate 1mbit burst 3000 latency 400ms
"""


def lacks() -> str:
    """What this machine has not, and such a network needs; empty when there is all."""
    programs = [name for name in ("ip", "tc", "nft", "nsenter", "unshare") if shutil.which(name) is None]
    if programs:
        return f"the program {', '.join(programs)} (of iproute2, nftables, util-linux)"
    if os.geteuid() != 0:
        return "root, which makes network namespaces,"
    tried = subprocess.run(["unshare", "--net", "sh", "-ec", _TRIED], capture_output=True, text=True, check=False)
    return f"a kernel that lets us make networks ({tried.stderr.strip()})" if tried.returncode else ""


class _Namespace:
    """A network namespace, which lives as long as a process in it."""

    def __init__(self, name: str, folder: Path) -> None:
        command = ["unshare", "--net", "sleep", "infinity"]
        self._keeper = Child(f"namespace {name}", command, log=folder / f"namespace-{name}.log", env=os.environ)
        self.pid = self._keeper.pid
        self.through = ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")
        """What a command is put behind that is to run in it."""
        ours = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self._its() not in ("", ours), f"the namespace {name}")
        self.run("ip", "link", "set", "lo", "up")

    def _its(self) -> str:
        self._keeper.check_running()
        return os.readlink(f"/proc/{self.pid}/ns/net")

    def run(self, *command: str, given: str = "") -> None:
        """Run a command in it. AssertionError with what it says when it fails."""
        done = subprocess.run([*self.through, *command], input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{given}"

    def end(self) -> None:
        self._keeper.discard()


class Host:
    """A host at the switch. `through`: what a command is put behind that is to run on it."""

    def __init__(self, name: str, number: int, switch: _Namespace, folder: Path) -> None:
        self.name = name
        self.address = f"{PREFIX}.{number}"
        self._switch = switch
        self._slow = False
        self._place = _Namespace(name, folder)
        self.through = self._place.through
        ends = ("name", "eth0", "netns", str(self._place.pid), "type", "veth", "peer", "name", name)
        subprocess.run(["ip", "link", "add", *ends, "netns", str(switch.pid)], check=True)
        switch.run("ip", "link", "set", name, "master", "switch", "up")
        self._place.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._place.run("ip", "link", "set", "eth0", "up")

    def pull(self) -> None:
        """Pull the cable out of the switch: whatever is sent is gone, and nobody is told of anything."""
        self._switch.run("ip", "link", "set", self.name, "down")

    def plug(self) -> None:
        """Put it in again."""
        self._switch.run("ip", "link", "set", self.name, "up")

    def slow(self, kbit: int) -> None:
        """From now on the cable carries this many kbit/s each way; what waits for longer than 0.4 s is lost."""
        limit = ("root", "tbf", "rate", f"{kbit}kbit", "burst", "3000", "latency", "400ms")
        self._slow = True
        self._switch.run("tc", "qdisc", "add", "dev", self.name, *limit)
        self._place.run("tc", "qdisc", "add", "dev", "eth0", *limit)

    def heal(self) -> None:
        """Its cable is in, and carries all."""
        self.plug()
        if self._slow:
            self._slow = False
            self._switch.run("tc", "qdisc", "del", "dev", self.name, "root")
            self._place.run("tc", "qdisc", "del", "dev", "eth0", "root")

    def end(self) -> None:
        self._place.end()


class Network:
    """A context manager: a switch, and hosts at it. The switch loses what it is told to lose, and tells nobody."""

    def __init__(self, folder: Path, hosts: Sequence[str]) -> None:
        self._folder = folder
        self._names = hosts
        self._ends: list[_Namespace | Host] = []
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        try:
            self._switch = _Namespace("switch", self._folder)
            self._ends.append(self._switch)
            self._switch.run("ip", "link", "add", "switch", "type", "bridge")
            self._switch.run("ip", "link", "set", "switch", "up")
            for number, name in enumerate(self._names, 1):
                self.hosts[name] = Host(name, number, self._switch, self._folder)
                self._ends.append(self.hosts[name])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for end in reversed(self._ends):
            end.end()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def lose(self, host: Host, *, sent: float = 0.0, received: float = 0.0) -> None:
        """From now on, in place of what was lost before: these shares of what a host sends, and of what it is sent."""
        shares = ((sent, "iifname"), (received, "oifname"))
        chances = ((way, "" if share == 1 else f"numgen random mod 1000 < {share * 1000:.0f}") for share, way in shares)
        self._drop(f'{way} "{host.name}" {chance} drop' for way, chance in chances)

    def forget(self, ports: Iterable[int]) -> None:
        """As a firewall that has lost its memory: from now on, connections whose one end is such a port carry nothing,
        and nobody is told. Others do.
        """
        them = ", ".join(map(str, ports))
        self._drop(f"meta l4proto tcp tcp {end} {{ {them} }} drop" for end in ("sport", "dport"))

    def heal(self) -> None:
        """All is as it was in the beginning."""
        self._drop(())
        for host in self.hosts.values():
            host.heal()

    def _drop(self, rules: Iterable[str]) -> None:
        """In place of what was dropped before."""
        lines = "\n".join(rules)
        chain = f"chain passing {{ type filter hook forward priority 0;\n{lines}\n}}"
        table = "table bridge fault"
        self._switch.run("nft", "-f", "-", given=f"{table}\ndelete {table}\n{table} {{\n{chain}\n}}\n")


class HostedServer:
    """A Valkey on a host. The test itself reaches it by a socket in the file system, whatever the network does."""

    def __init__(self, host: Host, folder: Path) -> None:
        program = binary("valkey")
        assert program is not None
        path = folder / "redis.sock"
        self.port = REDIS_PORT
        self.url = f"redis://{host.address}:{REDIS_PORT}/0"
        command = [*host.through, program, "--port", str(REDIS_PORT), "--bind", "0.0.0.0", "--protected-mode", "no"]
        command += ["--unixsocket", str(path), "--dir", str(folder), "--save", "", "--notify-keyspace-events", "K$"]
        self._child = Child("valkey-server", command, log=folder / "valkey.log", env=os.environ)
        self.client = redis.Redis(unix_socket_path=str(path), decode_responses=True, protocol=2)
        try:
            wait_until(self._answers, "the server to answer")
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        self._child.check_running()
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def ports(self) -> list[int]:
        """The ports of all connections that came over the network."""
        return [int(one["addr"].rpartition(":")[2]) for one in self.client.client_list() if one["addr"][0] != "/"]

    def stop(self) -> None:
        self.client.close()
        self._child.discard()
