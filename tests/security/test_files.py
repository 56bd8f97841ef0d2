"""What a model gives out, and what its process knows: no file of the system's or the worker's leaves the machine."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from cog_celery.delivery.link import Link, SharedLink
from cog_celery.delivery.prediction import Prediction
from cog_celery.delivery.requests import PredictionRequest
from cog_celery.delivery.snapshots import Cog04
from cog_celery.delivery.stream import RELEASED, Delivery, Entry, Queue
from cog_celery.errors import Canceled, UploadError
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.outputs import Uploader
from cog_celery.runtime.cog._runner.places import NotToBeGiven, real_place
from cog_celery.slots.outlet import SlotOutlet
from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer
from tests.support.web import LOCAL, Handler, Web, reply

pytestmark = pytest.mark.ours

SECRET = "hunter2secret"
SYSTEM = "lies among the files of the system itself"


# Places


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A runner's temporary folder, beside a file that is not in it."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "scratch" / "inner").mkdir(parents=True)
    (tmp_path / "scratch" / "inner" / "own.txt").write_text("own")
    return tmp_path / "scratch"


def refused(path: Path | str, scratch: Path | None = None) -> str:
    with pytest.raises(NotToBeGiven) as caught:
        real_place(str(path), None if scratch is None else str(scratch))
    with pytest.raises(UploadError) as told:
        uploads = Uploader(None, client=Client()).for_prediction("p", scratch=None if scratch is None else str(scratch))
        uploads.upload(str(path))
    assert str(caught.value) in str(told.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        *("/proc/self/environ", "/proc/1/environ", "/proc/self/task/../environ", "/proc//self/./environ"),
        *("/tmp/../proc/self/environ", "/proc/self/root/etc/hostname", "/proc/self/cwd/pyproject.toml"),
        *("/dev/fd/0", "/dev/stdin", "/proc/self/fd/0", "/etc/mtab", "/dev/mem", "/dev/null"),
        *("/sys/kernel/mm/transparent_hugepage/enabled", "/proc/no-such-file", f"/proc/{'x' * 300}"),
    ],
)
def test_the_systems_own_files_are_not_given_out(path: str, scratch: Path) -> None:
    if path == "/etc/mtab" and not os.path.islink(path):
        pytest.skip("it is no link here")
    assert SYSTEM in refused(path)
    os.symlink(path, scratch / "link")
    os.symlink(scratch / "link", scratch.parent / "link")
    assert SYSTEM in refused(scratch / "link", scratch)
    assert SYSTEM in refused(scratch.parent / "link")


def test_a_descriptor_of_ours_is_not_given_out_by_any_link(tmp_path: Path) -> None:
    with (tmp_path / "secret.txt").open("w+") as file:
        os.symlink(f"/proc/self/fd/{file.fileno()}", tmp_path / "link")
        assert SYSTEM in refused(tmp_path / "link")


@pytest.mark.parametrize(
    "link",
    [
        "{outside}/secret.txt",
        "../secret.txt",
        "inner/../../secret.txt",
        "{scratch}/../secret.txt",
        "/etc/passwd",
        "/proc/../etc/passwd",
    ],
)
def test_a_link_does_not_lead_out_of_the_temporary_folder(scratch: Path, link: str) -> None:
    os.symlink(link.format(outside=scratch.parent, scratch=scratch), scratch / "link")
    assert "is a link that leads out of the temporary folder" in refused(scratch / "link", scratch)
    # By way of other links, from within and from elsewhere.
    os.symlink("../link", scratch / "inner" / "again")
    os.symlink(scratch / "inner", scratch.parent / "elsewhere")
    assert "leads out of the temporary folder" in refused(scratch / "inner" / "again", scratch)
    assert "leads out of the temporary folder" in refused(scratch.parent / "elsewhere" / "again", scratch)


def test_a_folder_that_is_a_link_does_not_lead_out_either(scratch: Path) -> None:
    os.symlink("..", scratch / "folder")
    assert "leads out" in refused(scratch / "folder" / "secret.txt", scratch)


def test_a_second_name_of_a_file_does_not_lead_out_either(scratch: Path) -> None:
    os.link(scratch.parent / "secret.txt", scratch / "hard.txt")
    assert "has another name" in refused(scratch / "hard.txt", scratch)


def test_what_leads_nowhere_else_is_given_out(scratch: Path) -> None:
    own = scratch / "inner" / "own.txt"
    os.symlink("inner/own.txt", scratch / "link")
    os.symlink(own, scratch.parent / "into")
    os.symlink(scratch.parent / "secret.txt", scratch.parent / "beside")
    os.symlink(scratch, scratch.parent / "alias")
    for path, real in (
        (own, own),
        (scratch / "link", own),
        (scratch.parent / "into", own),
        (scratch.parent / "alias" / "link", own),
        (scratch.parent / "secret.txt", scratch.parent / "secret.txt"),  # wherever the runner can read it
        (scratch.parent / "beside", scratch.parent / "secret.txt"),
    ):
        assert real_place(str(path), str(scratch)) == str(real.resolve())
        # The temporary folder may be known by a link itself, as on macOS.
        assert real_place(str(path), str(scratch.parent / "alias")) == str(real.resolve())


def test_shared_memory_is_a_folder_like_others() -> None:
    if not os.path.isdir("/dev/shm"):
        pytest.skip("there is no /dev/shm")
    path = f"/dev/shm/cog-celery-test-{uuid.uuid4().hex}"
    Path(path).write_text("content")
    try:
        assert real_place(path, None) == path
    finally:
        os.unlink(path)


def test_links_in_a_circle_end(scratch: Path) -> None:
    os.symlink("two", scratch / "one")
    os.symlink("one", scratch / "two")
    with pytest.raises(UploadError, match="could not be opened: Too many levels of symbolic links"):
        Uploader(None, client=Client()).for_prediction("p", scratch=str(scratch)).upload(str(scratch / "one"))


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", "..%2f..%2fx", "a\\..\\..\\x", "x\r\n..", "..;", "?..", "#.."])
def test_no_name_leaves_the_prefix(scratch: Path, name: str) -> None:
    with Web() as web:
        web.on("*", reply(200))
        uploads = Uploader(web.url + "/prefix/?token=1", client=Client(LOCAL)).for_prediction("p")
        if name in (".", ".."):
            with pytest.raises(UploadError, match="is a folder"):
                uploads.upload(str(scratch / name))
            return
        (scratch / name).write_text("x")
        uploads.upload(str(scratch / name))
        [seen] = web.seen
        assert seen.target == f"/prefix/{quote(name, safe='')}?token=1"
        assert seen.target.count("/") == 2


# A fleet


SECRETS = {
    "AWS_ACCESS_KEY_ID": SECRET,
    "AWS_PROFILE": SECRET,
    "REDIS_HOST_OF_OURS": SECRET,
    "CELERY_ANYTHING": SECRET,
    "COG_CELERY_REPORT_SETUP_RUN_URL": f"http://127.0.0.1:9/{SECRET}",
    "COGCELERY_ANYTHING": SECRET,
    "OTEL_EXPORTER_OTLP_HEADERS": SECRET,
    "MY_SECRET_NAME": SECRET,
    "a_token_in_lower_case": SECRET,
    "DB_PASSWORD": SECRET,
    "SIGNING_KEY": SECRET,
    "DATABASE": f"postgres://user:{SECRET}@host/db",
}


@pytest.fixture(scope="module")
def uploads() -> Iterator[Web]:
    with Web() as web:
        yield web


@pytest.fixture(scope="module")
def giving(shared_fleet: FleetFactory, uploads: Web) -> Fleet:
    """A worker full of secrets, whose model gives out whatever it is told to; HF_TOKEN is let through."""
    fleet = shared_fleet(
        "gives_out", start=False, lease=1, upload_url=uploads.url, env={"HF_TOKEN": "of the model"}, max_output_files=1
    )
    fleet.start_bridge()
    fleet.start_worker(env=SECRETS)
    fleet.wait_ready()
    return fleet


@pytest.fixture
def producer(giving: Fleet, uploads: Web) -> Producer:
    uploads.on("*", reply(200))
    uploads.seen.clear()
    return giving.producer


def test_a_runner_knows_no_secret_but_those_that_are_let_through(producer: Producer, giving: Fleet) -> None:
    environment = producer.predict({"how": "environment"})["output"]
    assert environment["HF_TOKEN"] == "of the model"
    assert environment["PATH"] == os.environ["PATH"]
    assert not set(SECRETS) & set(environment)
    assert SECRET not in str(environment) and giving.server.url not in str(environment)
    [runner] = giving.runners()
    started_with = Path(f"/proc/{runner.pid}/environ").read_bytes()
    assert SECRET.encode() not in started_with


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "file:///etc/passwd", "~/.ssh/id_rsa"])
def test_text_that_looks_like_a_path_is_text(producer: Producer, uploads: Web, path: str) -> None:
    assert producer.predict({"how": "text", "path": path})["output"] == path
    assert uploads.seen == []


def test_a_path_that_the_model_returns_is_a_file(producer: Producer, uploads: Web, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("content")
    for how in ("file", "yields file"):
        uploads.seen.clear()
        output = producer.predict({"how": how, "path": str(tmp_path / "own.txt")})["output"]
        assert output == ([uploads.url + "/own.txt"] if "yields" in how else uploads.url + "/own.txt")
        assert [seen.body for seen in uploads.seen] == [b"content"]
    assert producer.predict({"how": "own_link"})["output"] == uploads.url + "/out.txt"


@pytest.mark.parametrize("how", ["file", "link", "yields file", "yields link"])
@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/{worker}/environ"])
def test_the_workers_environment_is_not_uploaded(
    producer: Producer, giving: Fleet, uploads: Web, how: str, path: str
) -> None:
    answer = producer.predict({"how": how, "path": path.format(worker=giving.workers[0].pid)})
    assert answer["status"] == "failed"
    assert SYSTEM in answer["error"]
    assert uploads.seen == []


@pytest.mark.parametrize("how", ["link", "folder", "hard_link", "yields link", "yields folder", "yields hard_link"])
def test_no_link_leads_out_of_the_runners_temporary_folder(
    producer: Producer, uploads: Web, tmp_path: Path, how: str
) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    answer = producer.predict({"how": how, "path": str(tmp_path / "secret.txt")})
    assert answer["status"] == "failed"
    assert "temporary folder" in answer["error"]
    assert uploads.seen == []


# Attempts


SLOT = "w~00000001.0"
OTHER = "w~00000002.0"


class Told:
    """The execution of an outlet: what it was told."""

    def __init__(self, cancel: Cancel) -> None:
        self.reasons: list[str] = []
        self._cancel = cancel

    def stop(self, reason: str, error: str = "") -> None:
        self.reasons.append(reason)
        self._cancel.set()


class Attempt:
    """A slot at its entry, with two presigned URLs, and what it uploads."""

    def __init__(self, link: Link, queue: Queue, web: Web, folder: Path) -> None:
        self.path = folder / "out.txt"
        self.path.write_text("content")
        value = b'{"input":{},"response_queue":"r"}'
        link.call("XADD", queue.name, "*", "value", value)
        [[_, [[entry, _]]]] = link.call("XREADGROUP", "GROUP", queue.name, SLOT, "STREAMS", queue.name, ">")
        self.entry: str = entry.decode()
        request = PredictionRequest(response_queue="r", output_upload_urls=[web.url + "/0", web.url + "/1"])
        self.outlet = SlotOutlet(
            *(queue, link, SLOT, Delivery(Entry(queue.name, self.entry), 1, value), request, Prediction(), Cog04()),
            Uploader(None, client=Client(LOCAL)),
            SharedLink(link),
            None,
            id="p",
            max_input_bytes=1,
        )
        self.cancel = Cancel()
        self.told = Told(self.cancel)
        self.outlet.execution = self.told  # type: ignore[assignment]

    def upload(self) -> str:
        return self.outlet.upload(str(self.path), self.cancel).result()


@pytest.fixture
def link(redis_server: RedisServer) -> Iterator[Link]:
    link = Link(redis_server.url, "test")
    yield link
    link.close()


@pytest.fixture
def attempt(link: Link, uploads: Web, tmp_path: Path) -> Attempt:
    queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
    queue.create_group(link)
    uploads.on("*", reply(200))
    uploads.seen.clear()
    return Attempt(link, queue, uploads, tmp_path)


def reclaim(link: Link, attempt: Attempt, owner: str, *how: str) -> None:
    name = attempt.outlet._queue.name
    link.call("XCLAIM", name, name, owner, 0, attempt.entry, *how)


@pytest.mark.parametrize("what", ["reclaimed", "again", "released", "acknowledged", "group gone", "stream gone"])
def test_a_late_upload_does_not_reach_a_url_of_the_request(
    link: Link, uploads: Web, attempt: Attempt, what: str
) -> None:
    assert attempt.upload() == uploads.url + "/0"
    name = attempt.outlet._queue.name
    match what:
        case "reclaimed":
            reclaim(link, attempt, OTHER)
        case "again":  # by ourselves, at a later attempt
            reclaim(link, attempt, SLOT)
        case "released":
            reclaim(link, attempt, RELEASED, "JUSTID")
        case "acknowledged":
            link.call("XACK", name, name, attempt.entry)
        case "group gone":
            link.call("XGROUP", "DESTROY", name, name)
        case "stream gone":
            link.call("DEL", name)
    with pytest.raises(Canceled):
        attempt.upload()
    assert attempt.told.reasons == ["lost"]
    assert uploads.targets() == ["PUT /0"]


def test_an_entry_that_was_deleted_is_canceled_before_its_next_upload(
    link: Link, uploads: Web, attempt: Attempt
) -> None:
    link.call("XDEL", attempt.outlet._queue.name, attempt.entry)
    with pytest.raises(Canceled):
        attempt.upload()
    assert attempt.told.reasons == ["canceled"]
    assert uploads.seen == []


def test_who_was_overtaken_during_an_upload_does_not_send_it_again(
    redis_server: RedisServer, uploads: Web, attempt: Attempt
) -> None:
    def overtake(handler: Handler) -> None:
        other = Link(redis_server.url, "other")
        reclaim(other, attempt, OTHER)
        other.close()
        handler.answer(503)

    uploads.on("*", overtake)
    with pytest.raises(Canceled):
        attempt.upload()
    assert attempt.told.reasons == ["lost"]
    assert uploads.targets() == ["PUT /0"]


def test_an_upload_waits_for_a_server_that_is_out_of_reach_and_ends_with_the_prediction(
    redis_server: RedisServer, uploads: Web, tmp_path: Path
) -> None:
    uploads.on("*", reply(200))
    uploads.seen.clear()
    proxy = Proxy(redis_server)
    link = Link(proxy.url, "test")
    try:
        queue = Queue(f"q-{uuid.uuid4().hex[:8]}")
        queue.create_group(link)
        attempt = Attempt(link, queue, uploads, tmp_path)
        proxy.cut()
        assert attempt.upload() == uploads.url + "/0"  # over a new connection
        proxy.close()
        timer = threading.Timer(0.3, attempt.cancel.set)
        timer.start()
        start = time.monotonic()
        with pytest.raises(Canceled):
            attempt.upload()
        assert 0.2 < time.monotonic() - start < 3
        timer.join()
    finally:
        link.close()
        proxy.close()
    assert attempt.told.reasons == []
    assert uploads.targets() == ["PUT /0"]
