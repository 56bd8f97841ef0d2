"""Kubernetes manifests as `kubectl kustomize` renders them, and what is found in them.

It must not know what they are for.
"""

from __future__ import annotations

import base64
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
WORKLOADS: Final = ("Deployment", "StatefulSet")

Manifest = dict[str, Any]


def program(name: str) -> str:
    """A tool of the `dev` extra, beside the interpreter that runs the tests."""
    found = shutil.which(name, path=str(Path(sys.prefix, "bin"))) or shutil.which(name)
    if found is None:
        raise LookupError(f"there is no {name}: `make install` brings it")
    return found


class Manifests:
    """A set of objects, each known by its kind and its name without the hash of a generator."""

    def __init__(self, objects: list[Manifest]) -> None:
        self.objects = objects

    def __iter__(self) -> Iterator[Manifest]:
        return iter(self.objects)

    def __add__(self, other: Manifests) -> Manifests:
        return Manifests(self.objects + other.objects)

    def kind(self, *kinds: str) -> list[Manifest]:
        return [one for one in self.objects if one["kind"] in kinds]

    def get(self, kind: str, name: str) -> Manifest:
        """Raises LookupError."""
        found = [one for one in self.kind(kind) if one["metadata"]["name"] == name]
        if len(found) != 1:
            raise LookupError(f"{len(found)} objects {kind} {name}")
        return found[0]

    def names(self) -> set[str]:
        return {f"{one['kind']}/{one['metadata']['name']}" for one in self.objects}

    def data(self, kind: str, name: str) -> dict[str, str]:
        """What a ConfigMap or a Secret holds, decoded."""
        found = self.get(kind, name)
        data: dict[str, str] = dict(found.get("data", {}))
        if kind == "Secret":
            data = {key: base64.b64decode(value).decode() for key, value in data.items()}
        return {**data, **found.get("stringData", {})}


def parse(text: str) -> Manifests:
    return Manifests([one for one in yaml.load_all(text, yaml.CSafeLoader) if one])


@functools.cache
def kustomize(folder: Path) -> str:
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise AssertionError(f"kubectl kustomize {folder}:\n{done.stderr}")
    return done.stdout


def render(folder: Path) -> Manifests:
    """A copy for each caller, who may change it."""
    return parse(kustomize(folder))


def secrets(env: Mapping[str, str]) -> Manifests:
    """What deploy/kubernetes/secrets.sh prints with these variables."""
    command = ["sh", str(KUBERNETES / "secrets.sh")]
    path = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env={**path, **env}, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    return parse(done.stdout)


def pod_spec(workload: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def pod_labels(workload: Manifest) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def container_of(workload: Manifest) -> dict[str, Any]:
    """The one container of its pods."""
    [container] = pod_spec(workload)["containers"]
    found: dict[str, Any] = container
    return found


def variables(container: Mapping[str, Any], objects: Manifests) -> dict[str, str]:
    """The variables of a container, as a kubelet makes them. Raises LookupError for one that is missing."""
    env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        ref = source["configMapRef"]
        env |= objects.data("ConfigMap", ref["name"])
    for one in container.get("env", []):
        if "value" in one:
            env[one["name"]] = one["value"]
            continue
        [(how, ref)] = one["valueFrom"].items()
        kind = {"secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap"}[how]
        try:
            env[one["name"]] = objects.data(kind, ref["name"])[ref["key"]]
        except LookupError as error:
            if not ref.get("optional"):
                raise LookupError(f"{one['name']}: {kind} {ref['name']} has no {ref['key']}") from error
    return env
