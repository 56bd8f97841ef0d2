"""The controllers that add and remove the pods of a Deployment: updates, scaling, and what KEDA asks for.

It must not know what runs in a pod.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
from collections.abc import Callable, Mapping
from typing import Final

from tests.support.kubelet import LOOK, Node, Pod
from tests.support.manifests import Manifest
from tests.support.processes import wait_until

ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"


class Controller:
    """The pods of one Deployment: as many as it should have, replaced as its strategy says.

    `most` and `fewest` tell how many pods there were, and how many of them ready, at the extremes of an update.
    """

    def __init__(self, node: Node, deployment: Manifest, replicas: int | None = None) -> None:
        self.node = node
        self.replicas = deployment["spec"].get("replicas", 1) if replicas is None else replicas
        self.pods: list[Pod] = []
        self.choose: Callable[[list[Pod]], Pod] | None = None
        """Which pod goes when there are too many; without it, as a ReplicaSet chooses."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.apply(deployment)
        self._thread = threading.Thread(target=self._run, name=deployment["metadata"]["name"], daemon=True)
        self._thread.start()

    def apply(self, deployment: Manifest) -> None:
        with self._lock:
            self.deployment = deployment
            text = json.dumps(deployment["spec"]["template"], sort_keys=True)
            self._revision = hashlib.sha256(text.encode()).hexdigest()[:10]
            self.most, self.fewest = 0, 1_000_000

    def scale(self, replicas: int) -> None:
        with self._lock:
            self.replicas = replicas

    @property
    def current(self) -> list[Pod]:
        """Those that are not about to end."""
        return [pod for pod in list(self.pods) if not pod.deleted]

    def is_new(self, pod: Pod) -> bool:
        return pod.name.split("-")[-2] == self._revision

    @property
    def complete(self) -> bool:
        current = self.current
        return len(current) == self.replicas and all(pod.ready and self.is_new(pod) for pod in current)

    def wait_complete(self, timeout: float = 90.0) -> None:
        """Until there are as many pods as there should be, all of the template of today and ready."""
        wait_until(lambda: self.complete, f"{self.replicas} pods of {self._revision} to be ready", timeout)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended.wait(LOOK):
            with self._lock:
                self._reconcile()

    def _reconcile(self) -> None:
        current = self.current
        new = [pod for pod in current if self.is_new(pod)]
        old = [pod for pod in current if not self.is_new(pod)]
        ready = sum(pod.ready for pod in current)
        rolling = self.deployment["spec"]["strategy"].get("rollingUpdate", {"maxSurge": 0, "maxUnavailable": 1})
        if old:
            self.most, self.fewest = max(self.most, len(current)), min(self.fewest, ready)
        room = self.replicas + (rolling["maxSurge"] if old else 0) - len(current)
        for _ in range(min(self.replicas - len(new), room)):
            name = "-".join(
                [self.deployment["metadata"]["name"], self._revision, "".join(random.choices(ALPHABET, k=5))]
            )
            self.pods.append(self.node.start(self.deployment, name))
        if old:
            spare = ready - (self.replicas - rolling["maxUnavailable"])
            for pod in sorted(old, key=lambda pod: pod.ready):
                if not pod.ready or spare > 0:
                    spare -= pod.ready
                    pod.delete()
        for _ in range(len(new) - self.replicas):
            pod = (self.choose or _first_to_go)([pod for pod in new if not pod.deleted])
            pod.delete()


def _first_to_go(pods: list[Pod]) -> Pod:
    """One that is not ready, else the one that has been for the shortest time."""
    return min(pods, key=lambda pod: (pod.ready, -pod.ready_since))


def wanted(scaled: Manifest, lengths: Mapping[str, int]) -> int:
    """How many replicas KEDA, and the autoscaler that it drives, make of the lengths of streams (XLEN).

    By the rules of their documentation: from and to zero is KEDA's, by whether the formula is above the activation
    target; the rest is the autoscaler's, the formula's value for each pod, rounded up, between the limits. The caller
    waits as long as they would.
    """
    spec = scaled["spec"]
    modifiers = spec["advanced"]["scalingModifiers"]
    values = {one["name"]: lengths.get(one["metadata"]["stream"], 0) for one in spec["triggers"]}
    names = [name.strip() for name in modifiers["formula"].split("+")]
    value = sum(values[name] for name in names)
    if value <= float(modifiers.get("activationTarget", 0)):
        return int(spec["minReplicaCount"])
    count = math.ceil(value / float(modifiers["target"]))
    return max(1, int(spec["minReplicaCount"]), min(count, int(spec["maxReplicaCount"])))
