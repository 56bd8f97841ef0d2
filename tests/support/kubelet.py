"""A small kubelet: runs the pods of manifests as processes of this machine, and their probes.

It must not know what they do. What is real: command, arguments, variables, Secrets, ConfigMaps, volumes at their paths,
a read-only root, the user without capabilities, the pod's name as host name, process 1, probes with their commands,
periods, thresholds and limits, SIGTERM, the grace, SIGKILL, and restarts. What is not: images (they are this machine's
/usr, this checkout and its interpreter, with the ENV and folders that a test gives), the network (all pods share the
loopback, so that ports cannot be the manifests'), seccomp, limits of memory and CPU. It needs root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support import manifests, pod_init
from tests.support.manifests import Manifest, Manifests
from tests.support.processes import Child, wait_until

LOOK: Final = 0.02
"""Seconds between looks at what has changed."""
FILES: Final = ("ld.so.cache", "alternatives", "nsswitch.conf", "passwd", "group", "localtime", "ssl")
"""Of /etc, what any image has."""
POD_PIDS: Final = 2000
"""Process ids that each container has for itself, so that they tell in a shared file who wrote it."""


@dataclass(frozen=True)
class Image:
    """What an image brings: its ENV, and folders (path in the image → folder of this machine)."""

    env: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    workdir: str = "/tmp"


@dataclass
class Node:
    """A machine with a kubelet. `objects` are the cluster's; `images` by name, without registry and tag.

    `back_off`: seconds before a container is started again. `own`: the variables that a pod of this workload gets over
    the manifest's. `hosts`: names that lead to this machine. `shared`: folders that all pods may write to, by their
    path in a pod.
    """

    folder: Path
    objects: Manifests
    images: Mapping[str, Image]
    back_off: float = 10.0
    own: Callable[[str], Mapping[str, str]] = lambda workload: {}
    hosts: tuple[str, ...] = ()
    shared: Mapping[str, Path] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    containers: int = 0

    def start(self, workload: Manifest, name: str) -> Pod:
        pod = Pod(self, workload, name)
        self.pods.append(pod)
        pod.start()
        return pod

    def discard(self) -> None:
        for pod in self.pods:
            pod.discard()

    def log(self, last: int = 4000) -> str:
        return "\n".join(f"--- {pod}\n{pod.text()[-last:]}" for pod in self.pods)


class Probe:
    """One probe of a container, and how it has gone. A result is what Kubernetes makes of it: after thresholds."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.about = about
        self.period = float(about.get("periodSeconds", 10))
        self.due = time.monotonic() + float(about.get("initialDelaySeconds", 0))
        self.succeeded = self.failed = 0

    def note(self, ok: bool) -> bool | None:
        """True or False once that is certain, None before."""
        self.due = time.monotonic() + self.period
        self.succeeded, self.failed = (self.succeeded + 1, 0) if ok else (0, self.failed + 1)
        if self.succeeded >= self.about.get("successThreshold", 1):
            return True
        return False if self.failed >= self.about.get("failureThreshold", 3) else None


class Pod:
    """One pod of one container. `events` are what a person would read in `kubectl describe pod`."""

    def __init__(self, node: Node, workload: Manifest, name: str) -> None:
        self.node, self.name = node, name
        self.workload = workload["metadata"]["name"]
        self.template = workload["spec"]["template"]
        self.spec = self.template["spec"]
        [self.container] = self.spec["containers"]
        self.claims = [one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])]
        self.folder = node.folder / name
        self.started = self.ready = self.gone = False
        self.ready_since = 0.0
        self.restarts = 0
        self.events: list[str] = []
        self.exit_status: int | None = None
        self.terminating_since: float | None = None
        self._deleted = threading.Event()
        self._env = self._variables()
        self._child: Child | None = None
        self._pid: int | None = None
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def __str__(self) -> str:
        state = "gone" if self.gone else "ready" if self.ready else "started" if self.started else "starting"
        return f"{self.name}: {state}, {self.restarts} restarts; {'; '.join(self.events)}"

    @property
    def deleted(self) -> bool:
        return self._deleted.is_set()

    @property
    def env(self) -> Mapping[str, str]:
        return self._env

    @property
    def pid(self) -> int | None:
        """The container's main process, as this machine numbers it."""
        return self._pid

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / name

    def text(self) -> str:
        """What all of its containers wrote."""
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def start(self) -> None:
        self.folder.mkdir()
        for volume in self.spec.get("volumes", []):
            self._make_volume(volume)
        for claim in self.claims:
            self._make_volume({"name": claim, "emptyDir": {}})
        self._thread.start()

    def delete(self) -> None:
        """What `kubectl delete pod` begins: SIGTERM, the grace, SIGKILL."""
        if not self.deleted:
            self.terminating_since = time.monotonic()
            self._deleted.set()

    def wait_gone(self, timeout: float = 60.0) -> None:
        wait_until(lambda: self.gone, f"{self} to be gone", timeout)

    def discard(self) -> None:
        self.terminating_since = self.terminating_since or time.monotonic()
        self._deleted.set()
        if self._child is not None:
            self._child.discard()  # its namespace's process 1 dies with it, and all with that
        if self._thread.ident is not None:
            self._thread.join(10)

    # The container

    def _image(self) -> Image:
        return self.node.images[self.container["image"].rsplit(":", 1)[0].rsplit("/", 1)[-1]]

    def _variables(self) -> dict[str, str]:
        path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        env = {"PATH": path, "HOSTNAME": self.name, "KUBERNETES_SERVICE_HOST": "10.96.0.1"}
        given = manifests.variables(self.container, self.node.objects)
        return {**env, **self._image().env, **given, **self.node.own(self.workload)}

    def _make_volume(self, volume: Mapping[str, Any]) -> None:
        folder = self.volume(volume["name"])
        folder.mkdir(parents=True)
        if "configMap" in volume:
            for name, text in self.node.objects.data("ConfigMap", volume["configMap"]["name"]).items():
                (folder / name).write_text(text)
        elif "emptyDir" in volume:
            folder.chmod(0o777)
        else:
            raise NotImplementedError(f"a volume that is neither a ConfigMap nor an empty folder: {volume}")

    def _binds(self) -> list[tuple[str, str, bool]]:
        checkout = {manifests.ROOT, Path(sys.prefix), Path(sys.base_prefix).resolve()}
        binds = [("/usr", "/usr", False)]
        binds += [(f"/etc/{name}", f"/etc/{name}", False) for name in FILES if os.path.exists(f"/etc/{name}")]
        mounts = self.container.get("volumeMounts", [])
        binds += [
            (str(self.volume(mount["name"])), mount["mountPath"], not mount.get("readOnly", False)) for mount in mounts
        ]
        # Behind the volumes: this checkout may lie below /tmp.
        binds += [(str(folder), str(folder), False) for folder in sorted(checkout)]
        binds += [(str(folder), path, False) for path, folder in self._image().folders.items()]
        binds += [(str(folder), path, True) for path, folder in self.node.shared.items()]
        return binds

    def _start_container(self) -> None:
        self.node.containers += 1
        number = self.node.containers
        about = {**self.spec.get("securityContext", {}), **self.container.get("securityContext", {})}
        root, report = self.folder / f"root-{number}", self.folder / f"pid-{number}"
        root.mkdir()
        spec = {
            "command": [*self.container.get("command", []), *self.container.get("args", [])],
            "env": self._env,
            "hostname": self.name,
            "uid": about["runAsUser"],
            "gid": about["runAsGroup"],
            "groups": [about["fsGroup"]] if "fsGroup" in about else [],
            "workdir": self.container.get("workingDir", self._image().workdir),
            "root": str(root),
            "binds": self._binds(),
            "hosts": "".join(f"127.0.0.1 {name}\n" for name in ("localhost", self.name, *self.node.hosts)),
            "read_only": about["readOnlyRootFilesystem"],
            "no_capabilities": about["capabilities"] == {"drop": ["ALL"]},
            "reaps": self.spec.get("shareProcessNamespace", False),
            "first_pid": number * POD_PIDS,
            "report": str(report),
        }
        file = self.folder / f"spec-{number}.json"
        file.write_text(json.dumps(spec))
        command = [sys.executable, "-I", "-S", pod_init.__file__, str(file)]
        self._child = Child(self.name, command, log=self.folder / "log", env={"PATH": os.environ["PATH"]})
        wait_until(lambda: report.exists() or not self._child_runs(), f"{self.name} to be started")
        self._pid = self._main_process(report, reaps=spec["reaps"]) if report.exists() else None
        kinds = ("startup", "readiness", "liveness")
        self._probes = {
            kind: Probe(self.container[f"{kind}Probe"]) for kind in kinds if f"{kind}Probe" in self.container
        }
        self.started = self.ready = not self._probes and self._pid is not None

    def _child_runs(self) -> bool:
        return self._child is not None and self._child.running

    def _main_process(self, report: Path, *, reaps: bool) -> int | None:
        first = int(report.read_text())
        if not reaps:
            return first
        children = Path("/proc", str(first), "task", str(first), "children")
        with suppress(FileNotFoundError, ProcessLookupError):
            wait_until(lambda: children.read_text().split() or not self._child_runs(), f"{self.name} to have a command")
            found = children.read_text().split()
            return int(found[0]) if found else None
        return None

    def _signal(self, number: int) -> None:
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def _end_container(self, grace: float) -> None:
        """SIGTERM, and SIGKILL when the grace is over."""
        self._signal(signal.SIGTERM)
        until = time.monotonic() + grace
        while self._child_runs() and time.monotonic() < until:
            self._probe("readiness")
            time.sleep(LOOK)
        if self._child_runs():
            self.events.append(f"killed after {grace:g} s")
            self._signal(signal.SIGKILL)
        assert self._child is not None
        self.exit_status = self._child.wait(10)

    # Its life

    def _live(self) -> None:
        while not self.deleted:
            self._start_container()
            grace = self._watch()
            if self._child_runs():
                self._end_container(grace)
            assert self._child is not None
            self.exit_status = self._child.wait(10)
            self.ready = False
            if not self.deleted:
                self.events.append(f"the container ended with {self.exit_status} and is started again")
                self.restarts += 1
                self._deleted.wait(self.node.back_off)
        self.gone = True

    def _watch(self) -> float:
        """Until the container has ended, or is to end; returns the grace that it has."""
        grace = float(self.spec["terminationGracePeriodSeconds"])
        while self._child_runs() and not self.deleted:
            kinds = ["readiness", "liveness"] if self.started or "startup" not in self._probes else ["startup"]
            for kind in kinds:
                verdict = self._probe(kind)
                if verdict is None:
                    continue
                if kind == "startup" and verdict:
                    self.started = True
                elif kind != "readiness" and not verdict:
                    self.events.append(f"its {kind} probe failed")
                    return float(self._probes[kind].about.get("terminationGracePeriodSeconds", grace))
            self._deleted.wait(LOOK)
        return grace

    def _probe(self, kind: str) -> bool | None:
        """Run the probe if it is due; what is certain by now."""
        probe = self._probes.get(kind)
        if probe is None or time.monotonic() < probe.due:
            return None
        verdict = probe.note(self._ask(probe.about))
        if kind == "readiness" and verdict is not None:
            if verdict and not self.ready:
                self.ready_since = time.monotonic()
            self.ready = verdict
        return verdict

    def _ask(self, about: Mapping[str, Any]) -> bool:
        limit = float(about.get("timeoutSeconds", 1))
        if "exec" in about:
            return self.run(about["exec"]["command"], limit)[0] == 0
        http = about["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        url = f"http://127.0.0.1:{ports.get(http['port'], http['port'])}{http['path']}"
        try:
            with urllib.request.urlopen(url, timeout=limit) as answer:
                return 200 <= int(answer.status) < 400
        except (urllib.error.URLError, OSError):
            return False

    def look_often(self, kind: str, period: float) -> None:
        """Ask this probe of the container at once, and then each `period` seconds."""
        self._probes[kind].period, self._probes[kind].due = period, 0.0

    def run(self, command: list[str], limit: float = 10.0) -> tuple[int, str]:
        """What `kubectl exec` does: the exit status and what was written. 124: it took longer than `limit` seconds."""
        if self._pid is None:
            return 1, "there is no container"
        about = {**self.spec.get("securityContext", {}), **self.container.get("securityContext", {})}
        words = ["nsenter", "--target", str(self._pid), "--mount", "--uts", "--ipc", "--pid", "--root", "--wd"]
        words += ["setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        words += ["--reuid", str(about["runAsUser"]), "--regid", str(about["runAsGroup"]), "--clear-groups", "--"]
        try:
            done = subprocess.run(
                [*words, *command], env=self._env, timeout=limit, stdin=subprocess.DEVNULL, check=False, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, "it took too long"
        return done.returncode, done.stdout
