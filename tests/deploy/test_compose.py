"""compose.yaml: what `docker compose` makes of it, started as it says there, each service in its image and its network.

Redis is the machine's own, since what the manifest adds to it is a command, its variables and its health check.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from tests.conftest import missing
from tests.deploy.conftest import COG_IMAGE, ROOT
from tests.support.compose import config, seconds, spec
from tests.support.containers import Engine, Spec
from tests.support.images import Image, instructions
from tests.support.processes import family, wait_until
from tests.support.producer import Producer

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]

EXAMPLE = (ROOT / ".env.example").read_text()
PASSWORDS = re.findall(r"^(\w+_PASSWORD)=$", EXAMPLE, re.M)
SECRETS = {name: f"{number}-secret-{name.lower().replace('_', '-')}" for number, name in enumerate(PASSWORDS)}
OURS = ("bridge", "worker", "worker-gpu", "flower", "producer", "monitor")
STARTED = ("redis", "bridge", "worker", "flower")


def services(*profiles: str, **variables: str) -> dict[str, Any]:
    """The services with these profiles and variables, and a password for each name of .env.example."""
    found, errors = config(ROOT, {**SECRETS, **variables}, *profiles)
    assert found is not None, errors
    return dict(found["services"])


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    return services("*")


# What it says


def test_every_setting_of_the_file_is_in_the_example_and_the_other_way_round() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    told = set(re.findall(r"^#?(\w+)=", EXAMPLE, re.M))
    rarely = {"ADAPTER_IMAGE", "WORKER_IMAGE", "REDIS_QUEUES", "QUEUES", "MODEL_ID", "COG_USER", "GPUS", "GPU_WORKERS"}
    rarely |= {"GPU_COUNT", "FLOWER_USER", "PROMETHEUS_RETENTION", "REDIS_MAXMEMORY", "LOG_LEVEL"}
    page = (ROOT / "docs/compose.md").read_text()
    assert told - {"COMPOSE_PROFILES"} <= used
    assert used - told == rarely
    assert all(f"`{name}`" in page for name in rarely), "a setting that is nowhere explained"


def test_without_passwords_it_refuses_and_says_which_and_how() -> None:
    found, errors = config(ROOT, {}, "*")
    assert found is None
    for name in PASSWORDS:
        if name != "REDIS_ADMIN_PASSWORD":  # without one there is no such user
            assert f"{name} is missing a value: set the passwords in .env, by `make env` say" in errors


@pytest.mark.parametrize("name", [name for name in PASSWORDS if name != "REDIS_ADMIN_PASSWORD"])
def test_each_password_alone_is_missed(name: str) -> None:
    found, errors = config(ROOT, {**SECRETS, name: ""})
    assert found is None
    assert name in errors


def test_the_example_with_passwords_is_a_whole_configuration(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text(re.sub(r"(_PASSWORD=)$", r"\1abc", EXAMPLE, flags=re.M))
    found, errors = config(ROOT, {}, "*", env_file=file)
    assert found is not None, errors
    assert not errors


def test_make_env_writes_passwords_of_its_own_and_overwrites_nothing(tmp_path: Path) -> None:
    for name in ("Makefile", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    texts = []
    for _ in range(2):
        subprocess.run(["make", "env"], cwd=tmp_path, check=True, capture_output=True)
        texts.append((tmp_path / ".env").read_text())
        assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
        again = subprocess.run(["make", "env"], cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode != 0 and "there already" in again.stderr
        (tmp_path / ".env").unlink()
    passwords = [found for text in texts for found in re.findall(r"^\w+_PASSWORD=([0-9a-f]{48})$", text, re.M)]
    assert len(set(passwords)) == 2 * len(PASSWORDS)
    assert re.sub(r"[0-9a-f]{48}", "", texts[0]) == EXAMPLE


def test_profiles_add_what_they_are_named_after() -> None:
    usual = {"redis", "bridge", "worker", "flower"}
    assert set(services()) == usual
    assert set(services("gpu")) == usual | {"worker-gpu"}
    assert set(services("monitoring")) == usual | {"prometheus", "grafana"}
    assert set(services("traces")) == usual | {"otel-collector", "jaeger"}


def test_every_service_has_few_rights_and_writes_nowhere_but_in_volumes(everything: Mapping[str, Any]) -> None:
    for name, service in everything.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        assert "privileged" not in service and "network_mode" not in service, name
        assert service["restart"] == ("no" if name in ("producer", "monitor") else "unless-stopped"), name
        assert re.search(r":[^:]*\d", service["image"]) or "build" in service, f"{name}: no version"
        if service["image"].startswith("redis"):
            assert service["user"] == "999:999"


def test_workers_can_be_more_than_one(everything: Mapping[str, Any]) -> None:
    for name in ("worker", "worker-gpu"):
        fixed = {"container_name", "hostname", "ports", "mac_address"} & set(everything[name])
        assert not fixed and "COG_CELERY_NAME" not in everything[name]["environment"], name
        assert all("ipv4_address" not in (network or {}) for network in everything[name]["networks"].values())


def test_ports_are_those_of_this_machine_alone(everything: Mapping[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in everything.items() if "ports" in service}
    assert set(ports) == {"redis", "flower", "prometheus", "grafana", "jaeger"}
    assert all(port["host_ip"] == "127.0.0.1" for all_of_one in ports.values() for port in all_of_one)


def test_redis_is_on_networks_with_nobody_who_has_no_business_there(everything: Mapping[str, Any]) -> None:
    found, _ = config(ROOT, SECRETS, "*")
    assert found is not None
    neighbours = {
        name
        for name, service in everything.items()
        if set(service["networks"]) & set(everything["redis"]["networks"]) and name != "redis"
    }
    assert neighbours == set(OURS)
    assert {name for name, network in found["networks"].items() if network.get("internal")} == {
        "queue",
        "metrics",
        "traces",
    }


def test_a_service_waits_until_redis_is_healthy(everything: Mapping[str, Any]) -> None:
    for name in OURS:
        assert everything[name]["depends_on"]["redis"]["condition"] == "service_healthy", name
    for name in (*STARTED, "worker-gpu", "prometheus", "grafana"):
        assert everything[name]["healthcheck"]["test"], name


def test_a_drain_is_over_before_the_engine_kills(everything: Mapping[str, Any]) -> None:
    for name in ("bridge", "worker", "worker-gpu"):
        service = everything[name]
        drain = float(service["environment"]["COG_CELERY_DRAIN_TIMEOUT"])
        assert seconds(service["stop_grace_period"]) >= drain + 10, name


def test_gpus_are_reserved_by_the_profile_and_by_nothing_else(everything: Mapping[str, Any]) -> None:
    reserved = everything["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(one["driver"], one["count"], one["capabilities"]) for one in reserved] == [("nvidia", -1, ["gpu"])]
    assert everything["worker-gpu"]["environment"]["COG_CELERY_GPUS"] == "auto"
    for name, service in everything.items():
        assert name == "worker-gpu" or "reservations" not in service.get("deploy", {}).get("resources", {})
    assert services("gpu", WORKERS="0")["worker"]["deploy"]["replicas"] == 0


def test_the_model_is_a_folder_or_a_cog_image() -> None:
    folder = services(MODEL="workers/speech", PYTHON_VERSION="3.12")["worker"]
    assert folder["build"]["target"] == "worker"
    assert folder["build"]["args"]["MODEL"] == folder["environment"]["COG_CELERY_MODEL_ID"] == "workers/speech"
    assert folder["build"]["args"]["PYTHON_VERSION"] == "3.12"
    image = services(COG_IMAGE=COG_IMAGE, WORKER_READ_ONLY="false")["worker"]
    assert image["build"]["target"] == "worker-on-cog"
    assert image["build"]["args"]["COG_IMAGE"] == image["environment"]["COG_CELERY_MODEL_ID"] == COG_IMAGE
    assert not image.get("read_only")


def test_targets_and_files_that_it_names_are_there(everything: Mapping[str, Any]) -> None:
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    targets = {text.split()[-1] for name, text in instructions(dockerfile) if name == "FROM"}
    for service in everything.values():
        if "build" in service:
            assert service["build"]["target"] in targets
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists()


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        missing("promtool")
    for service in ("prometheus",):
        for volume in services("monitoring")[service]["volumes"]:
            if volume["type"] == "bind":
                shutil.copy(volume["source"], tmp_path / Path(volume["target"]).name)
    done = subprocess.run(
        [str(promtool), "check", "config", str(tmp_path / "compose.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_traces_go_from_the_collector_to_where_jaeger_listens(everything: Mapping[str, Any]) -> None:
    (volume,) = everything["otel-collector"]["volumes"]
    collector = yaml.safe_load(Path(volume["source"]).read_text())
    (pipeline,) = collector["service"]["pipelines"].values()
    for kind, names in pipeline.items():
        assert set(names) <= set(collector[kind]), kind
    endpoint = everything["worker"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].partition(":")[2]
    assert endpoint == f"http://otel-collector:{port}"
    assert collector["exporters"]["otlp/jaeger"]["endpoint"].partition(":")[0] in everything
    assert everything["otel-collector"]["command"] == [f"--config={volume['target']}"]


def test_grafana_finds_prometheus_and_its_dashboard(everything: Mapping[str, Any]) -> None:
    sources = {one["target"]: Path(one["source"]) for one in everything["grafana"]["volumes"] if one["type"] == "bind"}
    provisioning = sources["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/cog-celery.yaml").read_text())["providers"]
    home = everything["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in sources and Path(home).parent == Path(provider["options"]["path"])


def test_a_second_model_is_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/compose.md").read_text()
    (text,) = re.findall(r"<!-- override -->\n```yaml\n(.*?)```", page, re.S)
    (lines,) = re.findall(r"<!-- variables -->\n```sh\n(.*?)```", page, re.S)
    override = tmp_path / "compose.override.yaml"
    override.write_text(text.replace("compose.yaml", str(ROOT / "compose.yaml")))
    variables = dict(line.split("=", 1) for line in lines.splitlines())
    found, errors = config(ROOT, {**SECRETS, **variables}, override=override)
    assert found is not None, errors
    worker = found["services"]["worker-speech"]
    assert worker["build"]["args"]["MODEL"] == "workers/speech" and worker["image"] == "cog-celery-worker-speech"
    assert worker["environment"]["COG_CELERY_QUEUE"] == "speech"
    assert worker["depends_on"]["redis"]["condition"] == "service_healthy" and worker["read_only"]
    assert found["services"]["bridge"]["environment"]["COG_CELERY_QUEUE"] == "hello,speech"
    assert found["services"]["redis"]["environment"]["REDIS_QUEUES"] == "hello speech"
    assert found["services"]["worker"]["environment"]["COG_CELERY_QUEUE"] == "hello"


# What it does


def replicas(images: Mapping[str, Image], folder: Path, workers: int = 1, **variables: str) -> list[Spec]:
    """What `docker compose up --scale worker=N` starts, and the service for producers beside it."""
    found = services("tools", **variables)
    specs = []
    for name in (*STARTED, "producer", "monitor"):
        service = found[name]
        image = images[{"redis": "redis", "worker": service.get("build", {}).get("target", "")}.get(name, "adapter")]
        count = workers if name == "worker" else 1
        for number in range(1, count + 1):
            own = name if count == 1 else f"{name}-{number}"
            specs.append(spec(service, image, folder, name=own, alias=name))
    return specs


@pytest.fixture
def up(images: dict[str, Image], tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """`up(workers=2, MODEL=…)` → an engine in which all has become healthy, in the order of depends_on."""
    engines: list[Engine] = []

    def start(workers: int = 1, **variables: str) -> Engine:
        engine = Engine(tmp_path, replicas(images, tmp_path, workers, **variables))
        engines.append(engine)
        names = [name for name in engine.specs if name not in ("producer", "monitor")]
        engine.start("redis").wait_probe()
        for name in names[1:]:
            engine.start(name)
        for name in names[1:]:
            engine.containers[name].wait_probe(timeout=60)
        return engine

    yield start
    for engine in engines:
        print(engine.logs())
        engine.close()


def client(engine: Engine, user: str) -> redis.Redis:
    """To the port that is published, as the user of that role. To be used where the host's network is entered."""
    password = SECRETS[f"REDIS_{user.upper()}_PASSWORD"]
    host = engine.address("redis", "producers")
    return redis.Redis(host=host, username=user, password=password, decode_responses=True, protocol=2)


def send(producer: Producer, number: int, **input: Any) -> Any:
    """A request that names keys which RESPONSE_KEYS allows."""
    return producer.send(input, response_queue=f"response:{number}", cancel_key=f"cancel:{number}")


def run(engine: Engine, name: str, *command: str) -> str:
    """`docker compose run --rm SERVICE COMMAND`: what it wrote."""
    one = engine.specs[name]
    engine.specs[name] = Spec(**{**one.__dict__, "command": command})
    container = engine.start(name)
    container.child.wait(30)
    assert container.child.process.returncode == 0, container.child.text()
    return container.child.text()


def test_a_prediction_goes_through_all_of_it(up: Callable[..., Engine]) -> None:
    engine = up(workers=2)
    sent = run(engine, "producer", "cog-celery", "send", "-i", "text=world")
    assert json.loads(sent[sent.index("{") :])["output"] == "hello world"

    seen = run(engine, "monitor", "cog-celery", "status", "--output", "json")
    assert {"worker-1", "worker-2"} <= set(re.findall(r"worker-\d", seen)), "names come from the hosts'"

    with engine.host.entered():
        producer = Producer(client(engine, "producer"), "hello")
        requests = [send(producer, number, text=str(number)) for number in range(10)]
        assert [producer.wait(request)["output"] for request in requests] == [f"hello {n}" for n in range(10)]

        _check_users(engine)
        _check_flower(engine)
        for port in (engine.address("bridge", "metrics"), engine.address("worker-1", "metrics")):
            with urllib.request.urlopen(f"http://{port}:9431/metrics", timeout=5) as answer:
                assert b"cog_celery_" in answer.read()

    _check_processes(engine)
    _check_networks(engine)
    for name in ("worker-1", "worker-2", "bridge", "flower", "redis"):
        container = engine.containers[name]
        container.stop()
        assert container.child.process.returncode == 0 or name == "flower", container.child.text()[-2000:]

    engine.start("redis").wait_probe()
    with engine.host.entered():
        assert Producer(client(engine, "producer"), "hello").get(requests[0]) is not None, "it is in the volume"


def _check_users(engine: Engine) -> None:
    """ACL users are in force: none without a password, none for another's business."""
    host = engine.address("redis", "producers")
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(host=host, protocol=2).ping()
    producer = client(engine, "producer")
    for refused in (("GET", "cog-celery:hello:counts"), ("FLUSHALL",), ("KEYS", "*"), ("SET", "elsewhere", "x")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            producer.execute_command(*refused)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client(engine, "monitor").xadd("hello", {"value": "{}"})
    admin = client(engine, "admin")
    policy = admin.config_get("maxmemory-policy")
    assert policy["maxmemory-policy"] == "noeviction" and admin.config_get("appendonly")["appendonly"] == "yes"


def _check_flower(engine: Engine) -> None:
    """It asks for its password, and shows predictions and workers to who knows it."""
    url = f"http://{engine.address('flower', 'people')}:5555"

    def ask(path: str, password: str | None) -> tuple[int, str]:
        request = urllib.request.Request(url + path)
        if password is not None:
            token = base64.b64encode(f"flower:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    for path in ("/", "/workers?json=1", "/api/tasks"):
        assert ask(path, None)[0] == ask(path, "wrong")[0] == 401, path
    right = SECRETS["FLOWER_PASSWORD"]
    wait_until(lambda: '"hello@worker-1"' in ask("/workers?json=1", right)[1], "Flower to know the workers")
    wait_until(lambda: '"workers/hello"' in ask("/api/tasks", right)[1], "Flower to have a row of a prediction")


def _check_processes(engine: Engine) -> None:
    """No secret in what all of the machine can read, nor in what was logged; nobody but the init is root."""
    for name, container in engine.containers.items():
        for process in family([container.main.pid]) if container.main.alive else ():
            for secret in SECRETS.values():
                assert secret not in process.command, f"{name}: {process.command}"
            owner = Path(f"/proc/{process.pid}").stat().st_uid
            assert owner == (999 if name == "redis" else 10001), f"{name}: {process.command}"
        assert not any(secret in container.child.text() for secret in SECRETS.values()), name
    worker = engine.containers["worker-1"]
    (runner,) = [one for one in family([worker.main.pid]) if "_runner/__main__.py" in one.command]
    environ = Path(f"/proc/{runner.pid}/environ").read_bytes()
    assert b"REDIS" not in environ and b"secret" not in environ
    # A file system that is read-only, and what is not.
    for path, writable in (
        ("/src/x", False),
        ("/opt/x", False),
        ("/home/cog/x", False),
        ("/x", False),
        ("/tmp/x", True),
    ):
        done = worker.execute(["touch", path])
        assert (done.returncode == 0) is writable, f"{path}: {done.stdout}"
    data = engine.containers["redis"].spec
    assert any((mount.source / "appendonlydir").is_dir() for mount in data.mounts if mount.path == "/data")


def _check_networks(engine: Engine) -> None:
    """Of Redis' port on its own networks, and on nobody else's."""
    probe = "import socket,sys; socket.create_connection((sys.argv[1], 6379), 1)"
    python = "/opt/cog-celery/venv/bin/python"
    for name in ("bridge", "worker-1", "flower"):
        done = engine.containers[name].execute([python, "-I", "-c", probe, "redis"])
        assert done.returncode == 0, f"{name}: {done.stdout}"
    done = engine.containers["flower"].execute([python, "-I", "-c", probe, engine.address("redis", "producers")])
    assert done.returncode != 0


def test_a_published_model_joins_unchanged_and_ends_what_runs_when_it_is_stopped(up: Callable[..., Engine]) -> None:
    engine = up(COG_IMAGE=COG_IMAGE, WORKER_READ_ONLY="false", QUEUE="theirs")
    # Long enough for `send` to wonder where its request is, which it may not look for.
    sent = run(engine, "producer", "cog-celery", "send", "-i", "name=world", "-i", "seconds=3.5")
    output = json.loads(json.loads(sent[sent.index("{") :])["output"])
    assert output["name"] == "world"
    assert output["weights"] == "42", "found where the image has them, in root's cache"
    assert output["python"] == [3, 10] and output["pydantic"].startswith("1."), "the image's own"
    assert output["redis"] == "the model's", "by the PYTHONPATH of the image, which is not ours"
    assert output["cog"].startswith("/opt/cog-celery/"), "the module comes from us"
    assert output["user"] == 10001
    assert not any("REDIS" in name or "COG_CELERY" in name for name in output["variables"])
    command = engine.specs["worker"].command
    assert list(command) == ["/usr/bin/env", "cog-celery", "worker"], "behind the image's own entry point"

    worker = engine.containers["worker"]
    with engine.host.entered():
        producer = Producer(client(engine, "producer"), "theirs")
        long = send(producer, 1, name="long", seconds=2)
        producer.wait_for(long, lambda response: "began" in str(response["logs"]))
        took = worker.stop()
        response = producer.get(long)
    assert worker.child.process.returncode == 0
    assert response is not None and response["status"] == "succeeded", "it was over before the worker was"
    assert 1 < took < worker.spec.grace
