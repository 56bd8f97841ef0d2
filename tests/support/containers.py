"""Runs what a manifest says of containers as local processes, each with its own files, network, processes and user.

A container sees the paths, names, ports and variables of its manifest, and nothing else of this machine but its /usr:
bubblewrap makes the file system and the process ids, namespaces of their own the network, in which nothing but the
other containers is reached. It must not know where a manifest comes from: compose files and images are read elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import Child, Process, wait_until

TOOLS = ("bwrap", "ip", "nsenter", "setpriv", "unshare")
_CLONE_NEWNET = 0x40000000


def lacking() -> str | None:
    """What this machine lacks to run containers, None when nothing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} (apt-get install bubblewrap iproute2 util-linux)"
    return None if os.geteuid() == 0 else "root, which network namespaces need"


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine at a path of the container."""

    path: str
    source: Path
    writable: bool = False


@dataclass(frozen=True)
class Spec:
    """One container. `command` is all of its words, entry point and arguments; times are in seconds."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    tmpfs: Sequence[str] = ()
    user: int = 0
    workdir: str = "/"
    init: bool = False
    """Whether a process that reaps orphans is number 1; otherwise the command itself is."""
    networks: Sequence[str] = ()
    aliases: Sequence[str] = ()
    """Names besides its own by which others of its networks find it, that of a service with several replicas say."""
    probes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    grace: float = 10.0


def sandbox(
    mounts: Sequence[Mount], tmpfs: Sequence[str], *, user: int, workdir: str, hostname: str | None, init: bool
) -> list[str]:
    """The words before a command that give it these files and no others; its variables are those of the caller."""
    words = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--cap-add", "ALL"]
    words += [] if init else ["--as-pid-1"]
    words += ["--unshare-uts", "--hostname", hostname] if hostname else []
    words += ["--ro-bind", "/usr", "/usr", "--tmpfs", "/usr/local"]
    for name in ("bin", "sbin", "lib", "lib64"):
        link = Path("/", name)
        words += ["--symlink", f"usr/{name}", f"/{name}"] if link.is_symlink() else ["--ro-bind", str(link), str(link)]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for path in tmpfs:
        words += ["--perms", "1777", "--tmpfs", path]
    for mount in mounts:
        # bubblewrap would make them for root alone.
        for parent in reversed(Path(mount.path).parents[:-1]):
            words += ["--perms", "0755", "--dir", str(parent)]
        words += ["--bind" if mount.writable else "--ro-bind", str(mount.source), mount.path]
    # What is nobody's volume cannot be written to, by root neither.
    return [*words, "--remount-ro", "/", "--chdir", workdir, *_as(user)]


def _as(user: int) -> list[str]:
    # As a container with cap_drop: [ALL] and no-new-privileges has it.
    if user == 0:
        return ["setpriv", "--no-new-privs", "--"]
    ids = ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
    return ["setpriv", *ids, "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs", "--"]


class Network:
    """A network namespace, held by a process that does nothing, and so gone with the test run."""

    def __init__(self, name: str, folder: Path) -> None:
        command = ["unshare", "--net", "sleep", "3600"]
        self._holder = Child(f"network {name}", command, log=folder / f"{name}-network.log", env=dict(os.environ))
        mine = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self._there() not in (None, mine), f"the network of {name}")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def _there(self) -> str | None:
        self._holder.check_running()
        with suppress(OSError):
            return os.readlink(self.path)
        return None

    def run(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--net={self.path}", *command], check=True, capture_output=True, timeout=10)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in it meanwhile: the sockets that it makes, and the processes that it starts, belong there."""
        with open("/proc/thread-self/ns/net", "rb") as mine, open(self.path, "rb") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(mine.fileno())

    def close(self) -> None:
        self._holder.discard()


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Container:
    """One container that was started."""

    def __init__(self, spec: Spec, child: Child) -> None:
        self.spec = spec
        self.child = child
        found = wait_until(self._main, f"{spec.name} to start")
        assert found is not None
        self.main = found

    def _main(self) -> Process | None:
        """The container's own command: below bubblewrap's, and its init's if there is one."""
        pid = self.child.pid
        for _ in range(2 if self.spec.init else 1):
            children = Path(f"/proc/{pid}/task/{pid}/children")
            try:
                below = children.read_text().split()
            except OSError:
                below = []
            if not below:
                self.child.check_running()
                return None
            pid = int(below[0])
        found = Process.read(pid)
        # It is bubblewrap, then setpriv, until it has become the command.
        ours = found is None or Path(found.command.split(" ")[0]).name in ("bwrap", "setpriv", "nsenter")
        return None if ours else found

    def execute(self, command: Sequence[str], timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run something within the container, as its user with its variables; standard output and error together."""
        words = ["nsenter", "--target", str(self.main.pid), "--mount", "--pid", "--net", "--ipc", "--uts", "--wdns=/"]
        return subprocess.run(
            [*words, *_as(self.spec.user), *command],
            env=dict(self.spec.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def probe(self, name: str = "health") -> tuple[int, str]:
        """Exit status and output of one of its probes, run once."""
        done = self.execute(self.spec.probes[name])
        return done.returncode, done.stdout

    def wait_probe(self, name: str = "health", timeout: float = 30.0) -> None:
        """Until the probe succeeds."""
        last = ""

        def succeeds() -> bool:
            nonlocal last
            self.child.check_running()
            status, last = self.probe(name)
            return status == 0

        try:
            wait_until(succeeds, f"probe {name} of {self.spec.name}", timeout, interval=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{last}\n{self.child.text()[-4000:]}") from None

    def terminate(self) -> None:
        """SIGTERM to its command, as an engine that stops a container sends it."""
        with suppress(ProcessLookupError):
            os.kill(self.main.pid, signal.SIGTERM)

    def stop(self) -> float:
        """SIGTERM, and seconds until it ended; AssertionError when an engine would have had to kill it."""
        began = time.monotonic()
        self.terminate()
        self.child.wait(self.spec.grace)
        return time.monotonic() - began

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.main.pid, signal.SIGKILL)
        self.child.discard()


class Engine:
    """Containers that find each other by name on networks. `host` is on all of them, as the machine of an engine is."""

    def __init__(self, folder: Path, specs: Sequence[Spec]) -> None:
        self._folder = folder
        self.specs = {spec.name: spec for spec in specs}
        self.containers: dict[str, Container] = {}
        self._networks: dict[str, Network] = {}
        self._addresses: dict[tuple[str, str], str] = {}
        try:
            self.host = Network("host", folder)
            for number, name in enumerate(sorted({name for spec in specs for name in spec.networks}), 1):
                self._bridge(number, name, [spec for spec in specs if name in spec.networks])
        except BaseException:
            self.close()
            raise

    def _bridge(self, number: int, network: str, specs: Sequence[Spec]) -> None:
        bridge = f"net{number}"
        self.host.run("ip", "link", "add", bridge, "type", "bridge")
        self.host.run("ip", "address", "add", f"10.89.{number}.1/24", "dev", bridge)
        self.host.run("ip", "link", "set", bridge, "up")
        for last, spec in enumerate(specs, 2):
            if spec.name not in self._networks:
                self._networks[spec.name] = Network(spec.name, self._folder)
            inside = self._networks[spec.name]
            device, address = f"v{number}-{last}", f"10.89.{number}.{last}"
            self.host.run("ip", "link", "add", device, "type", "veth", "peer", "name", bridge, "netns", str(inside.pid))
            self.host.run("ip", "link", "set", device, "master", bridge, "up")
            inside.run("ip", "address", "add", f"{address}/24", "dev", bridge)
            inside.run("ip", "link", "set", bridge, "up")
            self._addresses[spec.name, network] = address

    def address(self, name: str, network: str) -> str:
        """Where a container is found on a network."""
        return self._addresses[name, network]

    def start(self, name: str) -> Container:
        spec = self.specs[name]
        etc = self._folder / f"{name}-etc"
        etc.mkdir(exist_ok=True)
        lines = ["127.0.0.1 localhost", f"127.0.1.1 {name}"]
        for other in self.specs.values():
            for network in spec.networks:
                if network in other.networks and other.name != name:
                    lines.append(f"{self.address(other.name, network)} {' '.join([other.name, *other.aliases])}")
        (etc / "hosts").write_text("\n".join(lines) + "\n")
        (etc / "nsswitch.conf").write_text("hosts: files\n")
        mounts = [Mount(f"/etc/{file}", etc / file) for file in ("hosts", "nsswitch.conf")]
        # What belongs to /usr.
        there = (Path("/etc", name) for name in ("alternatives", "ld.so.cache"))
        mounts += [Mount(str(path), path) for path in there if path.exists()]
        inner = sandbox(
            [*mounts, *spec.mounts],
            spec.tmpfs,
            user=spec.user,
            workdir=spec.workdir,
            hostname=name,
            init=spec.init,
        )
        within = ["nsenter", f"--net={self._networks[name].path}"] if name in self._networks else []
        words = [*within, *inner, *spec.command]
        child = Child(name, words, log=self._folder / f"{name}.log", env=spec.env)
        self.containers[name] = Container(spec, child)
        return self.containers[name]

    def logs(self) -> str:
        """What all of them have said, for a test that failed."""
        return "\n".join(f"--- {name}\n{one.child.text()[-6000:]}" for name, one in self.containers.items())

    def close(self) -> None:
        """End everything, whatever its state."""
        for container in self.containers.values():
            container.kill()
        for network in self._networks.values():
            network.close()
        if hasattr(self, "host"):
            self.host.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            print(self.logs(), file=sys.stderr)
        self.close()
