"""The Kubernetes manifests acted out under load: updates, scaling, and pods that are not well.

Their pods run as processes, with their probes: `tests/support/kubelet.py` says what is real about them. Times are those
of the manifests, but for what `hurried` replaces, and where a test says so.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import signal
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cog_celery.heartbeat import SILENCE
from tests.conftest import missing, recording
from tests.support.deployments import Controller, wanted
from tests.support.fleet import MODELS
from tests.support.kubelet import Image, Node, Pod
from tests.support.manifests import KUBERNETES, Manifest, container_of, render, secrets
from tests.support.oracle import Oracle
from tests.support.processes import wait_until
from tests.support.producer import Producer, Request
from tests.support.servers import binary, free_port

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]

REDIS = "redis.cog-celery.svc"
QUEUE, LANE = "hello", "hello.high"
PERIOD = 1.0
"""Seconds between two start-up probes, in place of two and five."""
SHORT = 0.05
"""Seconds that a prediction of the load takes."""


def hurried(workload: Manifest) -> Manifest:
    """A copy that is looked at more often while it starts, and is not given a minute when it is stuck."""
    workload = copy.deepcopy(workload)
    container = container_of(workload)
    container["startupProbe"]["periodSeconds"] = PERIOD
    if "terminationGracePeriodSeconds" in container["livenessProbe"]:
        container["livenessProbe"]["terminationGracePeriodSeconds"] = 1
    return workload


def with_variable(workload: Manifest, name: str, value: str) -> Manifest:
    workload = copy.deepcopy(workload)
    container = container_of(workload)
    container["env"] = [one for one in container["env"] if one["name"] != name] + [{"name": name, "value": value}]
    return workload


def another_image(workload: Manifest) -> Manifest:
    """What a release changes: the tag of the image."""
    workload = copy.deepcopy(workload)
    container = container_of(workload)
    container["image"] = container["image"].rsplit(":", 1)[0] + f":{uuid.uuid4().hex[:8]}"
    return workload


class Cluster:
    """The overlay `local` on one node: its Redis, its bridges, and workers with the model `actions`, none at first."""

    oracle: Oracle
    unheard = 0
    """Runs of requests that the oracle was not told of."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.objects = render(KUBERNETES / "overlays" / "local")
        # Secrets are the user's: these are what the script makes, under the names that the overlay's own have.
        self.secrets = secrets({"REDIS_ADDRESS": f"{REDIS}:{self.port}"})
        for one in self.objects.kind("Secret"):
            one["stringData"] = self.secrets.data("Secret", one["metadata"]["name"].rpartition("-")[0])
        journals = folder / "journal"
        journals.mkdir()
        journals.chmod(0o777)
        self.journal = journals / "lines"
        actions = Image(
            {
                "COG_CELERY_MODEL_DIR": "/src",
                "COG_CELERY_MODEL_ENV": "ACTIONS_JOURNAL,ACTIONS_SETUP",
                "ACTIONS_JOURNAL": "/journal/lines",
            },
            {"/src": MODELS / "actions"},
            workdir="/src",
        )
        images = {"cog-celery": Image(), "cog-celery-worker-hello": actions, "redis": Image()}
        pods = folder / "pods"
        pods.mkdir()
        self.node = Node(
            pods, self.objects + self.secrets, images, 0.5, self._own, (REDIS, "redis"), {"/journal": journals}
        )
        try:
            self._start()
        except BaseException:
            self.node.discard()
            raise

    def _start(self) -> None:
        self.start("redis-0", hurried(self.objects.get("StatefulSet", "redis")))
        self.client = self.connected("admin", self.secrets.data("Secret", "cog-celery-redis")["admin-password"])
        self.producer = Producer(
            self.connected("producer", self.secrets.data("Secret", "cog-celery-redis")["producer-password"]), QUEUE
        )
        self.bridge = hurried(self.objects.get("Deployment", "bridge"))
        self.worker = hurried(self.objects.get("Deployment", "worker-hello"))
        self.bridges = Controller(self.node, self.bridge)
        self.workers = Controller(self.node, self.worker, 0)
        self.bridges.wait_complete()

    def start(self, name: str, workload: Manifest) -> Pod:
        """A pod of it, ready."""
        pod = self.node.start(workload, name)
        try:
            wait_until(lambda: pod.ready, f"{name} to be ready", 60)
        except BaseException:
            pod.delete()
            raise
        return pod

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def connected(self, user: str, password: str) -> redis.Redis:
        return redis.Redis.from_url(self.url, username=user, password=password, decode_responses=True, protocol=2)

    def _own(self, workload: str) -> dict[str, str]:
        """The ports: all pods of a node have the same address here."""
        if workload == "redis":
            return {"REDIS_PORT": str(self.port)}
        if workload not in ("bridge", "worker-hello"):
            return {}
        return {"COG_CELERY_METRICS_PORT": str(free_port())}

    # Requests

    def send(self, action: str = "OK", seconds: float = SHORT) -> Request:
        unique = uuid.uuid4().hex
        request = self.producer.send(
            {"action": action, "seconds": seconds, "text": unique},
            response_queue=f"response:{unique}",
            cancel_key=f"response:{unique}:cancel",
        )
        return self.oracle.sent(request)

    def runner_of(self, request: Request) -> Pod:
        """The pod that runs it."""

        def owner() -> str:
            pending: Any = self.client.xpending_range(QUEUE, QUEUE, request.entry, request.entry, 1)
            return str(pending[0]["consumer"]) if pending else ""

        name = wait_until(lambda: "." in owner() and owner().partition("~")[0], f"{request.id} to run")
        return next(pod for pod in self.workers.pods if pod.name == name)

    # KEDA

    def lengths(self) -> dict[str, int]:
        """XLEN of each trigger's stream, as the user of the TriggerAuthentication."""
        scaled = self.objects.get("ScaledObject", "worker-hello")
        found: dict[str, int] = {}
        for trigger in scaled["spec"]["triggers"]:
            auth = self.objects.get("TriggerAuthentication", trigger["authenticationRef"]["name"])
            given = {
                one["parameter"]: self.objects.data("Secret", one["name"])[one["key"]]
                for one in auth["spec"]["secretTargetRef"]
            }
            assert given["address"] == f"{REDIS}:{self.port}"
            stream = trigger["metadata"]["stream"]
            with self.connected(given["username"], given["password"]) as monitor:
                found[stream] = int(monitor.xlen(stream))
        return found

    def wanted(self) -> int:
        return wanted(self.objects.get("ScaledObject", "worker-hello"), self.lengths())

    # Deployments

    def at(self, replicas: int) -> None:
        """So many workers of the manifest's own template, ready."""
        if self.workers.deployment is not self.worker:
            self.workers.apply(self.worker)
        self.workers.scale(replicas)
        self.workers.wait_complete()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for controller in (self.workers, self.bridges):
            controller.stop()
        self.node.discard()
        for client in (self.client, self.producer.client):
            client.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid():
        missing("root, for namespaces of pods,")
    if binary("redis") is None:
        missing("a redis-server on PATH")
    with Cluster(tmp_path_factory.mktemp("kubernetes")) as cluster, recording(cluster) as monitor:
        cluster.oracle = Oracle(monitor, cluster.journal, QUEUE)
        yield cluster


class Load:
    """Short predictions, each `every` seconds, from a thread, until the block ends."""

    def __init__(self, cluster: Cluster, every: float) -> None:
        self._cluster, self._every = cluster, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self._cluster.send()
            self.sent += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        assert self.sent > 10


def nothing_lost_or_run_twice(cluster: Cluster) -> None:
    """Every request so far has one terminal snapshot, of its first attempt, by its one run."""
    assert cluster.oracle.settle(), cluster.node.log()
    verdict = cluster.oracle.check().demand()
    assert verdict.statuses == {"succeeded": verdict.requests}, verdict
    assert verdict.runs == verdict.requests + cluster.unheard, verdict
    assert (verdict.run_twice, verdict.reclaimed) == ([], 0), verdict


def ended_well(pods: list[Pod]) -> None:
    """Each ended by itself within its grace, and none was started again before."""
    for pod in pods:
        pod.wait_gone()
        assert (pod.exit_status, pod.events, pod.restarts) == (0, [], 0), str(pod) + pod.text()[-3000:]


def test_keda_brings_workers_from_zero_by_the_length_of_the_queue(cluster: Cluster) -> None:
    assert cluster.lengths() == {QUEUE: 0, LANE: 0} and cluster.wanted() == 0
    requests = [cluster.send("SLEEP", 0.5) for _ in range(3)]
    # Nobody is there to take any. Two slots for each pod, and the sum of both streams counts.
    urgent = [Producer(cluster.producer.client, LANE).send_raw("{}") for _ in range(2)]
    assert cluster.lengths() == {QUEUE: 3, LANE: 2} and cluster.wanted() == 3
    cluster.client.xdel(LANE, *urgent)
    assert cluster.wanted() == 2
    cluster.workers.scale(cluster.wanted())
    cluster.workers.wait_complete()
    for request in requests:
        assert cluster.producer.wait(request)["status"] == "succeeded"
    wait_until(lambda: cluster.wanted() == 0, "both streams to be empty")


def test_the_pod_producer_sends_the_first_request(cluster: Cluster) -> None:
    cluster.at(2)
    manifest = cluster.objects.get("Pod", "producer")
    producer = cluster.start("producer", {"metadata": manifest["metadata"], "spec": {"template": manifest}})
    command = ["cog-celery", "send", "--queue", QUEUE, "-i", "action=OK", "-i", f"text={uuid.uuid4().hex}"]
    status, said = producer.run(command, 30)
    assert status == 0 and '"status": "succeeded"' in said.replace('":"', '": "'), said
    producer.delete()
    cluster.unheard += 1


def test_pods_are_what_the_manifests_say(cluster: Cluster) -> None:
    cluster.at(3)
    for pod in cluster.workers.current:
        assert pod.pid is not None
        status = dict(
            line.split(":\t") for line in Path(f"/proc/{pod.pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["Uid"].split() == ["10001"] * 4 and int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
        assert pod.run(["touch", "/anywhere"])[0] != 0, "the root is read-only"
        assert (pod.volume("run") / "ready").exists(), "the file by which Cog says that it is ready"
        with urllib.request.urlopen(
            f"http://127.0.0.1:{pod.env['COG_CELERY_METRICS_PORT']}/metrics", timeout=5
        ) as page:
            assert b"cog_celery_slots" in page.read()


def test_flower_shows_the_workers_to_who_has_the_password(cluster: Cluster) -> None:
    """Of the overlay `example`, on a port of its own."""
    cluster.at(3)
    flower = hurried(render(KUBERNETES / "overlays" / "example").get("Deployment", "flower"))
    container = container_of(flower)
    port = free_port()
    container["args"] = [word.replace("5555", str(port)) for word in container["args"]]
    container["ports"] = [{"name": "http", "containerPort": port}]
    pod = cluster.start("flower-0", flower)
    status, said = pod.run(["cog-celery", "status", "--output", "json"], 30)
    assert status == 0 and QUEUE in said, said
    user, password = cluster.secrets.data("Secret", "cog-celery-flower")["basic-auth"].split(":")
    url = f"http://127.0.0.1:{port}/api/workers?refresh=1"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=20)
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    with urllib.request.urlopen(
        urllib.request.Request(url, headers={"Authorization": f"Basic {basic}"}), timeout=20
    ) as answer:
        assert set(json.load(answer)) == {f"{QUEUE}@{worker.name}" for worker in cluster.workers.current}
    pod.delete()
    pod.wait_gone()


def test_a_scale_in_ends_no_prediction(cluster: Cluster) -> None:
    cluster.at(3)
    long = cluster.send("SLEEP", 3)
    busy = cluster.runner_of(long)
    # The worst choice: the pod at work goes, and one that is idle.
    cluster.workers.choose = lambda pods: busy if busy in pods else pods[0]
    with Load(cluster, 0.05):
        cluster.workers.scale(1)
        wait_until(lambda: len(cluster.workers.current) == 1, "two pods to be told to end")
        assert busy.deleted
        wait_until(lambda: not (busy.volume("run") / "ready").exists(), "the ready file to go")
        assert cluster.producer.wait(long)["status"] == "succeeded"
    cluster.workers.choose = None
    ended_well([pod for pod in cluster.workers.pods if pod.deleted])
    nothing_lost_or_run_twice(cluster)


def test_an_update_of_the_workers_loses_and_interrupts_nothing(cluster: Cluster) -> None:
    cluster.at(2)
    before = list(cluster.workers.current)
    long = cluster.send("SLEEP", 4)
    with Load(cluster, 0.05):
        cluster.runner_of(long)
        cluster.workers.apply(another_image(cluster.worker))
        cluster.workers.wait_complete()
        for pod in before:
            pod.wait_gone()
    ended_well(before)
    assert cluster.workers.most <= 3 and cluster.workers.fewest >= 2
    nothing_lost_or_run_twice(cluster)


def test_an_update_of_the_bridges_loses_and_interrupts_nothing(cluster: Cluster) -> None:
    cluster.workers.wait_complete()
    before = list(cluster.bridges.current)
    with Load(cluster, 0.02):
        cluster.bridges.apply(another_image(cluster.bridge))
        cluster.bridges.wait_complete()
        for pod in before:
            pod.wait_gone()
    ended_well(before)
    assert cluster.bridges.most <= 3 and cluster.bridges.fewest >= 2
    nothing_lost_or_run_twice(cluster)


@pytest.mark.parametrize(
    ("setup", "limit", "says"),
    [("FAIL_SETUP", "60", "Predictor errored during setup: told to fail"), ("SLOW_SETUP", "1", "setup")],
    ids=["fails", "hangs"],
)
def test_an_update_to_a_model_that_cannot_be_set_up_stops_at_its_first_pod(
    cluster: Cluster, setup: str, limit: str, says: str
) -> None:
    """`limit` is in place of the manifest's COG_CELERY_SETUP_TIMEOUT."""
    cluster.workers.wait_complete()
    before = list(cluster.workers.current)
    good = cluster.workers.deployment
    broken = with_variable(with_variable(cluster.worker, "ACTIONS_SETUP", setup), "COG_CELERY_SETUP_TIMEOUT", limit)
    with Load(cluster, 0.05):
        cluster.workers.apply(broken)
        wait_until(lambda: len(cluster.workers.current) > len(before), "a pod of the update")
        [new] = [pod for pod in cluster.workers.current if pod not in before]
        wait_until(lambda: new.restarts >= 1, f"{new} to be started again", 20)
        assert says in new.text() and not new.started and not new.ready
        assert all(pod.ready and not pod.deleted for pod in before)
    cluster.workers.apply(good)
    new.wait_gone()
    nothing_lost_or_run_twice(cluster)


def test_a_worker_whose_loop_stands_still_is_killed_and_started_again(cluster: Cluster) -> None:
    """The heartbeat is made as old as it would be after SILENCE, 30 s; a stopped process does not renew it."""
    cluster.workers.scale(1)
    cluster.workers.wait_complete()
    [pod] = cluster.workers.current
    assert pod.pid is not None
    first = pod.pid
    os.kill(first, signal.SIGSTOP)
    [file] = (pod.volume("tmp") / "cog-celery-10001").glob("worker-*.json")
    beat = json.loads(file.read_text())
    file.write_text(json.dumps({**beat, "at": beat["at"] - SILENCE}))
    pod.look_often("liveness", PERIOD / 2)
    wait_until(lambda: pod.restarts == 1, f"{pod} to be started again", 30)
    assert pod.events[:2] == ["its liveness probe failed", "killed after 1 s"]
    wait_until(lambda: pod.ready, f"{pod} to be ready", 30)
    assert pod.pid != first
    assert cluster.producer.wait(cluster.send())["status"] == "succeeded"
    nothing_lost_or_run_twice(cluster)


def test_keda_keeps_a_worker_for_what_runs_and_takes_the_last_one_away_then(cluster: Cluster) -> None:
    cluster.workers.wait_complete()
    request = cluster.send("SLEEP", 1)
    cluster.runner_of(request)
    assert cluster.wanted() == 1
    cluster.producer.wait(request)
    wait_until(lambda: cluster.wanted() == 0, "the stream to be empty")
    last = list(cluster.workers.current)
    cluster.workers.scale(cluster.wanted())
    for pod in last:
        pod.wait_gone()
    assert [pod.exit_status for pod in last] == [0]
    nothing_lost_or_run_twice(cluster)
