"""The first process of a pod's container: makes its namespaces and its root, becomes its user, and runs its command.

Run as `python pod_init.py SPEC`, by root. It must not know what the command is. SPEC is JSON: `command`, `env`,
`hostname`, `uid`, `gid`, `groups`, `workdir`, `root` (an empty folder), `binds` ([source, target, writable]), `hosts`
(the text of /etc/hosts), `read_only`, `no_capabilities`, `reaps` (whether the first process only waits, and the command
is its child), `first_pid` (below which no other process of it is numbered), `report` (a file that gets the id of the
first process, as this machine sees it, as soon as the command runs).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any, Final, NoReturn

LIBC: Final = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x20000, 0x4000000, 0x8000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG: Final = 1
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    if LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} at {target}: {os.strerror(error)}")


def bind(source: str, target: str, *, writable: bool) -> None:
    """`source`, a folder or a file, at `target`, which is made."""
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        with open(target, "a"):
            pass
    mount(source, target, flags=MS_BIND)
    if not writable:
        mount(source, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def make_root(spec: dict[str, Any]) -> None:
    root: str = spec["root"]
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "mode=755")
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", f"{root}/{name}", writable=False)
    for source, target, writable in spec["binds"]:
        bind(source, root + target, writable=writable)
    for name in DEVICES:
        bind(f"/dev/{name}", f"{root}/dev/{name}", writable=True)
    for folder in ("dev/shm", "proc", "etc", "tmp"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    if not os.path.ismount(f"{root}/dev/shm"):
        mount("shm", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=1777")
    mount("proc", f"{root}/proc", "proc")
    with open(f"{root}/etc/hosts", "w") as hosts:
        hosts.write(spec["hosts"])
    if spec["read_only"]:
        mount("tmpfs", root, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    os.chroot(root)
    os.chdir("/")


def run(spec: dict[str, Any]) -> NoReturn:
    words = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
    words += ["--reuid", str(spec["uid"]), "--regid", str(spec["gid"])]
    words += ["--groups", ",".join(map(str, spec["groups"]))] if spec["groups"] else ["--clear-groups"]
    if spec["no_capabilities"]:
        words += ["--bounding-set=-all", "--inh-caps=-all"]
    os.chdir(spec["workdir"])
    os.umask(0o022)
    os.execvpe(words[0], [*words, "--", *spec["command"]], spec["env"])


def first(spec: dict[str, Any], starting: int) -> int:
    """Process 1 of the container. `starting` is closed when the command begins."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    socket.sethostname(spec["hostname"])
    make_root(spec)
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(spec["first_pid"]))
    if not spec["reaps"]:
        run(spec)
    command = os.fork()
    if not command:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        run(spec)
    os.close(starting)
    while True:
        pid, status = os.wait()
        if pid == command:
            return os.waitstatus_to_exitcode(status) & 0xFF


def main() -> int:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    if LIBC.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    started, starting = os.pipe()  # not inherited by the command
    child = os.fork()
    if not child:
        os._exit(first(spec, starting))
    os.close(starting)
    os.read(started, 1)
    with open(spec["report"] + ".part", "w") as report:
        report.write(str(child))
    os.rename(spec["report"] + ".part", spec["report"])
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
