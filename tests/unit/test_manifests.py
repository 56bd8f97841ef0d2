"""The Kubernetes manifests as `kubectl kustomize` renders them: valid, and true to what they promise.

Kubernetes' own kinds are held against its schemas, strictly; those of KEDA and the Prometheus operator, which are in no
wheel, against `tests/support/crds.py`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cog_celery import __version__, fleet
from cog_celery.heartbeat import SILENCE
from cog_celery.settings import OPTIONS, PREFIX
from scripts.prometheus_rule import MANIFEST, RULES, manifest
from tests.support.crds import SCHEMAS
from tests.support.deployments import wanted
from tests.support.manifests import (
    KUBERNETES,
    ROOT,
    WORKLOADS,
    Manifest,
    Manifests,
    container_of,
    pod_labels,
    pod_spec,
    render,
    secrets,
    variables,
)
from tests.support.policies import allowed, matches

pytestmark = pytest.mark.ours

OLDEST: Final = "1.30"
NEWEST: Final = "1.37"
"""What docs/kubernetes.md promises, and the latest that there are schemas of."""
OVERLAYS: Final = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
OF_A_FLEET: Final = ("flower", "monitoring", "otel", "priority", "redis")
OF_A_MODEL: Final = ("gpu", "keda")
MARGIN: Final = 30
"""Seconds between the end of a drain and the end of the grace: what was stopped ends, Redis is told, Celery stops."""
OURS: Final = ("cog-celery",)
COMPONENT: Final = "app.kubernetes.io/component"
INSTANCE: Final = "app.kubernetes.io/instance"


def validate(objects: Manifests, versions: tuple[str, ...] = (NEWEST,)) -> None:
    seen = set()
    for one in objects:
        name = f"{one['kind']}/{one['metadata']['name']}"
        assert name not in seen, f"{name} is there twice"
        seen.add(name)
        if schema := SCHEMAS.get(one["kind"]):
            jsonschema.validate(one, schema)
        else:
            for version in versions:
                _validate(json.dumps(one, sort_keys=True), version)


@functools.cache
def _validate(text: str, version: str) -> None:
    """An object of Kubernetes' own; most of them are the same in all combinations."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def workloads(objects: Manifests) -> list[Manifest]:
    return objects.kind(*WORKLOADS)


def is_ours(workload: Manifest) -> bool:
    return pod_labels(workload)[COMPONENT] in ("bridge", "worker")


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> Manifests:
    """All that an overlay renders."""
    return render(KUBERNETES / "overlays" / request.param)


@pytest.fixture
def example() -> Manifests:
    return render(KUBERNETES / "overlays" / "example")


# Validity


def test_an_overlay_is_valid(objects: Manifests) -> None:
    validate(objects, (OLDEST, NEWEST))


COMBINATIONS: Final = [
    *((one,) for one in OF_A_FLEET),
    *itertools.combinations(OF_A_FLEET, 2),
    OF_A_FLEET,
]


@pytest.mark.parametrize("number", range(len(COMBINATIONS)), ids=lambda number: "+".join(COMBINATIONS[number]))
def test_components_work_alone_and_together(number: int, tmp_path: Path) -> None:
    of_the_fleet = COMBINATIONS[number]
    of_the_model = [one for bit, one in enumerate(OF_A_MODEL) if number >> bit & 1]

    def kustomization(folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(about))

    def there(*names: str) -> list[str]:
        # Kustomize takes no absolute paths.
        return [os.path.relpath(KUBERNETES / name, tmp_path) for name in names]

    labels = {"pairs": {INSTANCE: "m"}, "includeSelectors": True}
    components = [f"../{name}" for name in there(*(f"components/{one}" for one in of_the_model))]
    kustomization(
        tmp_path / "m",
        {
            "resources": [f"../{name}" for name in there("worker")],
            "components": components,
            "nameSuffix": "-m",
            "labels": [labels],
        },
    )
    kustomization(
        tmp_path,
        {
            "namespace": "elsewhere",
            "resources": [*there("base"), "m"],
            "components": there(*(f"components/{one}" for one in of_the_fleet)),
            "configMapGenerator": [{"name": "cog-celery-fleet", "literals": ["fleet.yaml=queues: {}"]}],
        },
    )
    objects = render(tmp_path)
    validate(objects)
    cluster_wide = ("Namespace", "PriorityClass")
    assert {one["metadata"].get("namespace") for one in objects if one["kind"] not in cluster_wide} == {"elsewhere"}
    assert {pod_labels(one)[COMPONENT] for one in workloads(objects)} == {"bridge", "worker"} | (
        {{"otel": "otel-collector"}.get(one, one) for one in of_the_fleet} & {"flower", "redis", "otel-collector"}
    )


def test_every_component_is_in_a_combination() -> None:
    there = {folder.name for folder in (KUBERNETES / "components").iterdir()}
    assert there == {*OF_A_FLEET, *OF_A_MODEL}


def test_the_alerts_are_those_of_every_prometheus() -> None:
    assert MANIFEST.read_text() == manifest(RULES.read_text()), "run `make rules`"
    assert yaml.safe_load(MANIFEST.read_text())["spec"] == yaml.safe_load(RULES.read_text())


# What every pod keeps to


def test_pods_have_as_few_rights_as_there_are(objects: Manifests) -> None:
    for workload in workloads(objects):
        account = objects.get("ServiceAccount", pod_spec(workload)["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
    for spec in [*map(pod_spec, workloads(objects)), *(one["spec"] for one in objects.kind("Pod"))]:
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        about = spec["securityContext"]
        assert about["runAsNonRoot"] is True and about["runAsUser"] > 0 and about["runAsGroup"] > 0
        assert about["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        volumes = spec.get("volumes", [])
        assert {next(key for key in one if key != "name") for one in volumes} <= {"configMap", "emptyDir"}
        assert all("sizeLimit" in one["emptyDir"] for one in volumes if "emptyDir" in one)


def test_pods_are_probed_and_bounded(objects: Manifests) -> None:
    for workload in workloads(objects):
        container = container_of(workload)
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["requests"].keys()
        assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        # Throttled, a probe would fail before anything else does.
        assert "cpu" not in container["resources"]["limits"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            http = container[kind].get("httpGet")
            assert http is None or http["port"] in ports


def test_images_are_pinned_and_ours_are_this_version(objects: Manifests) -> None:
    for workload in workloads(objects):
        name, _, tag = container_of(workload)["image"].rpartition(":")
        assert name and re.search(r"\d", tag), name
        if name.rpartition("/")[2].startswith(OURS):
            assert tag == __version__


def test_selectors_find_their_own_pods_and_no_others(objects: Manifests) -> None:
    templates = [pod_labels(one) for one in workloads(objects)]
    selectors = [one["spec"]["selector"]["matchLabels"] for one in workloads(objects)]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in objects.kind("PodDisruptionBudget")]
    selectors += [one["spec"]["selector"] for one in objects.kind("Service")]
    selectors += [
        constraint["labelSelector"]["matchLabels"]
        for one in workloads(objects)
        for constraint in pod_spec(one).get("topologySpreadConstraints", [])
    ]
    for selector in selectors:
        assert sum(selector.items() <= labels.items() for labels in templates) == 1, selector
    for workload in workloads(objects):
        assert workload["spec"]["selector"]["matchLabels"].items() <= pod_labels(workload).items()


def test_what_pods_name_is_there(objects: Manifests) -> None:
    """ConfigMaps and volumes; Secrets are those of the script."""
    made = {one["metadata"]["name"]: set(one["stringData"]) for one in secrets({"BROKER_URL": "amqp://broker"})}
    local = {one["metadata"]["name"] for one in objects.kind("Secret")}
    for workload in workloads(objects):
        spec, container = pod_spec(workload), container_of(workload)
        volumes = {one["name"] for one in spec["volumes"]}
        volumes |= {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        for volume in spec["volumes"]:
            if "configMap" in volume:
                objects.get("ConfigMap", volume["configMap"]["name"])
        for one in container.get("env", []):
            ref = one.get("valueFrom", {}).get("secretKeyRef")
            if ref and not ref.get("optional"):
                name = ref["name"] if not local else ref["name"].rpartition("-")[0]
                assert ref["key"] in made[name], ref
                assert not local or ref["name"] in local


def test_secrets_come_by_reference_alone(objects: Manifests) -> None:
    for workload in workloads(objects):
        for one in container_of(workload).get("env", []):
            if re.search(r"URL|PASS|AUTH|KEY", one["name"]) and not one["name"].startswith("REDIS_RESPONSE"):
                assert "secretKeyRef" in one.get("valueFrom", {}), one["name"]
    for one in objects.kind("ConfigMap"):
        assert not re.search(r"://[^/\s]*:[^/\s]*@", "".join(one["data"].values()))


def test_the_example_has_no_passwords(example: Manifests) -> None:
    assert not example.kind("Secret")


# Bridges and workers


def settings_of(workload: Manifest, objects: Manifests) -> tuple[str, dict[str, str]]:
    """The fleet file and the variables of a bridge or worker."""
    made = secrets({})
    names = {one["metadata"]["name"].rpartition("-")[0]: one["metadata"]["name"] for one in objects.kind("Secret")}
    for one in made:
        one["metadata"]["name"] = names.get(one["metadata"]["name"], one["metadata"]["name"])
    known = Manifests([one for one in objects if one["kind"] != "Secret"]) + made
    env = variables(container_of(workload), known)
    text: str = next(one["data"]["fleet.yaml"] for one in objects.kind("ConfigMap") if "fleet.yaml" in one["data"])
    assert env["COG_CELERY_FLEET"] == "/etc/cog-celery/fleet.yaml"
    return text, env


def test_variables_are_settings_that_the_processes_accept(objects: Manifests, tmp_path: Path) -> None:
    queues = {}
    for workload in filter(is_ours, workloads(objects)):
        text, env = settings_of(workload, objects)
        known = {name for option in OPTIONS for name in option.variables}
        assert {name for name in env if name.startswith(PREFIX)} <= known
        (tmp_path / "fleet.yaml").write_text(text)
        env["COG_CELERY_FLEET"] = str(tmp_path / "fleet.yaml")
        if pod_labels(workload)[COMPONENT] == "bridge":
            settings, plans = fleet.plans({}, env)
            assert len(plans) == len(settings.queues)
            bridge = set(settings.queues)
        else:
            env["COG_CELERY_MODEL_DIR"] = str(ROOT / "workers" / "hello")
            settings = fleet.load({}, env).for_worker()
            queues[settings.queue] = workload
            assert settings.predict_timeout is not None and settings.predict_timeout + MARGIN <= settings.drain_timeout
        assert settings.redis_url.startswith("redis://")
        assert settings.metrics_port in [port["containerPort"] for port in container_of(workload)["ports"]]
    assert queues.keys() <= bridge
    for queue, workload in queues.items():
        assert pod_labels(workload)[INSTANCE] == queue and workload["metadata"]["name"] == f"worker-{queue}"


def test_a_drain_ends_before_its_grace(objects: Manifests) -> None:
    for workload in filter(is_ours, workloads(objects)):
        _, env = settings_of(workload, objects)
        drain = float(env["COG_CELERY_DRAIN_TIMEOUT"])
        grace = pod_spec(workload)["terminationGracePeriodSeconds"]
        worker = pod_labels(workload)[COMPONENT] == "worker"
        # A bridge waits for a lease at the longest, whatever its limit.
        assert grace >= (drain if worker else 10) + (MARGIN if worker else 10)


def test_probes_wait_for_what_they_ask_after(objects: Manifests) -> None:
    for workload in filter(is_ours, workloads(objects)):
        role = pod_labels(workload)[COMPONENT]
        container = container_of(workload)
        ask = ["cog-celery", "health", "--role", role]
        startup, readiness, liveness = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
        assert liveness["exec"]["command"] == ask and readiness["exec"]["command"] == [*ask, "--ready"]
        assert all(probe["timeoutSeconds"] >= 5 for probe in (startup, readiness, liveness))
        assert container["args"] == ["cog-celery", role] and "command" not in container
        if role == "worker":
            assert startup["exec"]["command"] == [*ask, "--ready"]
            _, env = settings_of(workload, objects)
            longest = startup["periodSeconds"] * startup["failureThreshold"]
            assert float(env["COG_CELERY_SETUP_TIMEOUT"]) + 60 < longest
            assert workload["spec"]["progressDeadlineSeconds"] > longest
            # What is stuck does not get the grace of what works.
            assert liveness["terminationGracePeriodSeconds"] <= 2 * SILENCE


def test_workers_write_to_volumes_alone(objects: Manifests) -> None:
    for workload in filter(is_ours, workloads(objects)):
        _, env = settings_of(workload, objects)
        mounts = {mount["mountPath"] for mount in container_of(workload)["volumeMounts"] if not mount.get("readOnly")}
        assert "/tmp" in mounts
        if pod_labels(workload)[COMPONENT] == "worker":
            assert "HOME" not in env, "an image may have its model's weights there"
            assert "/var/run/cog" in mounts
            assert str(Path(env["COG_CELERY_INPUT_CACHE"]).parent) in mounts


def test_updates_keep_what_there_is_and_budgets_let_nodes_be_emptied(objects: Manifests) -> None:
    for workload in filter(is_ours, workloads(objects)):
        gpu = "nvidia.com/gpu" in container_of(workload)["resources"]["limits"]
        rolling = workload["spec"]["strategy"]["rollingUpdate"]
        assert rolling == ({"maxSurge": 0, "maxUnavailable": 1} if gpu else {"maxSurge": 1, "maxUnavailable": 0})
        [budget] = [
            one["spec"]
            for one in objects.kind("PodDisruptionBudget")
            if one["spec"]["selector"]["matchLabels"].items() <= pod_labels(workload).items()
        ]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert budget.get("maxUnavailable") == 1 or budget["minAvailable"] < workload["spec"]["replicas"]


def test_the_example_has_two_models_one_of_them_on_gpus(example: Manifests) -> None:
    workers = [one for one in workloads(example) if pod_labels(one)[COMPONENT] == "worker"]
    on_gpus = [one for one in workers if "nvidia.com/gpu" in container_of(one)["resources"]["limits"]]
    assert len(workers) == 2 and len(on_gpus) == 1
    _, env = settings_of(on_gpus[0], example)
    assert env["COG_CELERY_GPUS"] == "auto"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod_spec(on_gpus[0])[
        "tolerations"
    ]
    classes = {one["metadata"]["name"]: one["value"] for one in example.kind("PriorityClass")}
    priorities = {
        pod_labels(one)[COMPONENT]: pod_spec(one)["priorityClassName"] for one in filter(is_ours, workloads(example))
    }
    assert classes[priorities["bridge"]] > classes[priorities["worker"]]


# KEDA


def test_keda_counts_what_waits_and_runs_of_the_queue_of_its_workers(objects: Manifests) -> None:
    scaled = objects.kind("ScaledObject")
    workers = [one for one in workloads(objects) if pod_labels(one)[COMPONENT] == "worker"]
    assert {one["spec"]["scaleTargetRef"]["name"] for one in scaled} == {one["metadata"]["name"] for one in workers}
    for one in scaled:
        spec = one["spec"]
        workload = objects.get("Deployment", spec["scaleTargetRef"]["name"])
        assert "replicas" not in workload["spec"], "it would be set back by every `kubectl apply`"
        text, env = settings_of(workload, objects)
        queue = env["COG_CELERY_QUEUE"]
        assert [trigger["metadata"]["stream"] for trigger in spec["triggers"]] == [queue, f"{queue}.high"]
        assert "consumerGroup" not in str(one) and spec["minReplicaCount"] == 0
        assert spec["advanced"]["scalingModifiers"]["formula"] == " + ".join(one["name"] for one in spec["triggers"])
        assert yaml.safe_load(text)["queues"][queue]["priority"] is True, "or nobody takes what is in the lane"
        # No more than its slots, or pods are taken away that are needed for what runs.
        slots = int(yaml.safe_load(text)["queues"][queue].get("slots", 1))
        assert int(spec["advanced"]["scalingModifiers"]["target"]) == slots
        for trigger in spec["triggers"]:
            objects.get("TriggerAuthentication", trigger["authenticationRef"]["name"])
    made = secrets({}).data("Secret", "cog-celery-monitor")
    for one in objects.kind("TriggerAuthentication"):
        assert all(ref["key"] in made for ref in one["spec"]["secretTargetRef"])


@pytest.mark.parametrize(
    ("normal", "high", "replicas"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (2, 0, 1), (2, 1, 2), (5, 3, 4), (500, 500, 20)]
)
def test_keda_makes_pods_of_lengths(example: Manifests, normal: int, high: int, replicas: int) -> None:
    assert wanted(example.get("ScaledObject", "worker-hello"), {"hello": normal, "hello.high": high}) == replicas


# Who may talk to whom


def test_pods_reach_what_they_need_and_nothing_else(objects: Manifests) -> None:
    pods = {pod_labels(one)[COMPONENT]: pod_labels(one) for one in workloads(objects)}

    def talk(source: str, target: str, port: int) -> bool:
        return allowed(objects, "Egress", pods[source], pods[target], port) and allowed(
            objects, "Ingress", pods[target], pods[source], port
        )

    for source in pods.keys() - {"redis", "otel-collector"}:
        assert talk(source, "redis", 6379), source
    if "otel-collector" in pods:
        assert talk("bridge", "otel-collector", 4317) and talk("worker", "otel-collector", 4317)
        assert not talk("redis", "otel-collector", 4317)
    for source, target in itertools.permutations(pods, 2):
        if target not in ("redis", "otel-collector"):
            assert not any(talk(source, target, port) for port in (80, 443, 5555, 6379, 9431)), (source, target)
    dns = {"k8s-app": "kube-dns"}
    assert all(allowed(objects, "Egress", pod, dns, 53, "kube-system") for pod in pods.values())
    assert allowed(objects, "Ingress", pods["redis"], {}, 6379, "keda")
    assert not allowed(objects, "Ingress", pods["redis"], {}, 6379, "default")
    assert allowed(objects, "Ingress", pods["redis"], {"cog-celery/producer": "true"}, 6379)
    # Files, but no metadata of a cloud.
    assert allowed(objects, "Egress", pods["worker"], "52.216.0.1", 443)
    assert not allowed(objects, "Egress", pods["bridge"], "52.216.0.1", 443)
    for address in ("169.254.169.254", "fd00:ec2::254", "fe80::1"):
        assert not any(allowed(objects, "Egress", pods["worker"], address, port) for port in (80, 443))


def test_prometheus_reaches_metrics(example: Manifests) -> None:
    [monitor] = example.kind("PodMonitor")
    found = [one for one in workloads(example) if matches(monitor["spec"]["selector"], pod_labels(one))]
    assert {pod_labels(one)[COMPONENT] for one in found} == {"bridge", "worker"}
    for workload in found:
        ports = {port["name"]: port["containerPort"] for port in container_of(workload)["ports"]}
        assert allowed(example, "Ingress", pod_labels(workload), {}, ports["metrics"], "monitoring")
        assert not allowed(example, "Ingress", pod_labels(workload), {}, ports["metrics"], "default")


# The Secrets


def test_the_script_makes_other_passwords_each_time() -> None:
    one, other = (secrets({}).data("Secret", "cog-celery-redis") for _ in range(2))
    assert len({*one.values(), *other.values()}) == 10
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in one.values())


def test_the_script_takes_what_there_is() -> None:
    made = secrets(
        {
            "NAMESPACE": "mine",
            "REDIS_ADDRESS": "redis.example.com:6380",
            "REDIS_SCHEME": "rediss",
            "REDIS_WORKER_PASSWORD": "known",
            "BROKER_URL": "amqp://u:it's@rabbit/",
        }
    )
    assert {one["metadata"]["namespace"] for one in made} == {"mine"}
    worker = made.data("Secret", "cog-celery-worker")
    assert worker["redis-url"] == "rediss://worker:known@redis.example.com:6380/0"
    assert worker["broker-url"] == "amqp://u:it's@rabbit/"
    assert made.data("Secret", "cog-celery-monitor")["address"] == "redis.example.com:6380"
    for one in made:
        kubernetes_validate.validate(one, NEWEST, strict=True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_ADDRESS", "redis"),
        ("REDIS_ADDRESS", "redis:six"),
        ("REDIS_ADDRESS", "user@redis:6379"),
        ("REDIS_SCHEME", "http"),
        ("REDIS_BRIDGE_PASSWORD", "a/b"),
        ("REDIS_BRIDGE_PASSWORD", "a'\nkind: Evil"),
        ("NAMESPACE", "a\nkind: Evil"),
        ("BROKER_URL", "amqp://a\nkind: Evil"),
    ],
)
def test_the_script_refuses_what_would_not_work(variable: str, value: str) -> None:
    with pytest.raises(AssertionError, match=rf"secrets\.sh: {variable}"):
        secrets({variable: value})


# What is said of them


def test_the_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for name in re.findall(r"\bdeploy/(?:kubernetes|monitoring|redis)[\w./-]*\w", page):
        assert (ROOT / name).exists(), name
    for component in (*OF_A_FLEET, *OF_A_MODEL):
        assert f"`{component}`" in page, component
    variables = set(re.findall(r"COG_CELERY_\w+", page))
    assert variables <= {name for option in OPTIONS for name in option.variables}
    assert all((ROOT / "docs" / name).is_file() for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page))
    assert f"Kubernetes {OLDEST} or newer" in page
