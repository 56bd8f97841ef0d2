"""Hostile servers of files: where they lead us, how slowly they go, and how much they send.

Files in and out run on the same client, so a case is shown on whichever of them is nearer to it.
"""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cog_celery.errors import InputError, UploadError
from cog_celery.files import inputs
from cog_celery.files.http_client import Client
from cog_celery.files.outputs import Uploader
from cog_celery.files.urls import AddressPolicy
from cog_celery.settings import Settings
from tests.conftest import FleetFactory
from tests.support.fleet import MODELS, ROOT
from tests.support.web import LOCAL, Handler, Reply, Web, drip, elapsed, raw, reply

pytestmark = pytest.mark.ours

MEBIBYTE = 1 << 20
OTHER = "127.0.0.2"
"""Of this machine too, but not among the allowed where only 127.0.0.1 is."""


@pytest.fixture
def other() -> Iterator[Web]:
    """The server that nothing may reach."""
    with Web(host=OTHER) as web:
        web.on("*", reply(200, b"inner secret"))
        yield web


def client(policy: AddressPolicy = LOCAL, **options: Any) -> Client:
    return Client(policy, **{"connect_timeout": 2, "read_timeout": 2, "first_delay": 0.01, **options})


ONE = AddressPolicy(allow=["127.0.0.1"])


def refused_input(url: str, folder: Path, client: Client, **limits: Any) -> str:
    with pytest.raises(InputError) as caught:
        inputs.fetch([url], folder, client, **limits)
    assert not [path for path in folder.rglob("*") if path.is_file()]
    return str(caught.value)


def refused_output(url: str, folder: Path, client: Client) -> str:
    (folder / "out.bin").write_bytes(b"picture")
    with pytest.raises(UploadError) as caught:
        Uploader(None, client=client).for_prediction("p", [url]).upload(str(folder / "out.bin"))
    return str(caught.value)


REFUSED = [
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/meta-data/",
    "http://[64:ff9b::a9fe:a9fe]/latest/meta-data/",
    "http://127.0.0.1:6379/",
    "http://localhost:6379/",
    "http://[::1]:6379/",
    "http://0.0.0.0:6379/",
    # Forms that the resolver takes for addresses, though they look like names.
    "http://127.1:6379/",
    "http://2130706433:6379/",
    "http://0x7f000001:6379/",
    "http://0177.0.0.1:6379/",
]


@pytest.mark.parametrize("url", REFUSED)
def test_no_request_reaches_the_machine_itself_or_a_metadata_service(url: str, tmp_path: Path) -> None:
    strict = client(AddressPolicy())
    for message in (refused_input(url, tmp_path, strict), refused_output(url, tmp_path, strict)):
        assert "which this worker does not reach" in message


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/", f"http://{OTHER}:1/", "file:///etc/passwd"])
def test_a_redirect_does_not_lead_where_a_request_may_not(web: Web, tmp_path: Path, hops: int, target: str) -> None:
    for hop in range(1, hops):
        web.on(f"/{hop}", reply(307, Location=f"/{hop + 1}"))
    web.on(f"/{hops}", reply(307, Location=target))
    why = "'file' is not a valid URL scheme" if target.startswith("file") else "which this worker does not reach"
    assert why in refused_input(web.url + "/1", tmp_path, client(ONE))
    assert why in refused_output(web.url + "/1", tmp_path, client(ONE))
    assert len(web.seen) == 2 * hops


def test_a_redirect_to_a_server_that_is_there_does_not_reach_it(web: Web, other: Web, tmp_path: Path) -> None:
    web.on("/a", reply(302, Location=other.url + "/secret"))
    refused_input(web.url + "/a", tmp_path, client(ONE))
    assert other.seen == []


def test_three_redirects_are_followed_and_not_four(web: Web, tmp_path: Path) -> None:
    for hop in range(4):
        web.on(f"/{hop}", reply(307, Location=f"/{hop + 1}"))
    web.on("/4", reply(200, b"x"))
    assert "there were more than 3 redirects" in refused_input(web.url + "/0", tmp_path, client())
    assert "there were more than 3 redirects" in refused_output(web.url + "/0", tmp_path, client())
    assert "GET /4" not in web.targets() and "PUT /4" not in web.targets()
    [path] = inputs.fetch([web.url + "/1"], tmp_path, client())
    assert path.read_bytes() == b"x"


def test_credentials_do_not_cross_hosts(web: Web, tmp_path: Path) -> None:
    with Web() as elsewhere:
        for status, path in ((302, "/in"), (307, "/out")):
            web.on(path, reply(status, Location="/again"))
            web.on("/again", reply(status, Location=elsewhere.url + path))
            elsewhere.on(path, reply(200, b"x"))
            if path == "/in":
                inputs.fetch([f"http://user:pw@{web.netloc}/in"], tmp_path, client())
            else:
                (tmp_path / "out.bin").write_bytes(b"x")
                uploads = Uploader(None, client=client()).for_prediction("p", [f"http://user:pw@{web.netloc}/out"])
                uploads.upload(str(tmp_path / "out.bin"))
        assert all("Authorization" in seen.headers for seen in web.seen) and len(web.seen) == 4
        assert all("Authorization" not in seen.headers for seen in elsewhere.seen) and len(elsewhere.seen) == 2


# Names


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """`rebind.example` has the first of these addresses when it is asked for once, and so on; who asked for it."""
    real, asked, left = socket.getaddrinfo, [], list(answers)

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *args, **options)
        asked.append(threading.current_thread().name)
        return real(left.pop(0), port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolving(monkeypatch, "127.0.0.1", "169.254.169.254")
    web.on("/a", reply(200, b"x"))
    [path] = inputs.fetch([f"http://rebind.example:{web.port}/a"], tmp_path, client(ONE))
    assert path.read_bytes() == b"x"
    assert len(asked) == 1
    assert web.seen[0].headers["Host"] == f"rebind.example:{web.port}"


def test_a_name_that_changes_is_checked_again_at_the_next_connection(
    web: Web, other: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "127.0.0.1", OTHER)
    web.on("/a", reply(503, Connection="close"))
    message = refused_input(f"http://rebind.example:{web.port}/a", tmp_path, client(ONE))
    assert "its host rebind.example has an address of the machine itself" in message and OTHER not in message
    assert other.seen == []


def test_a_name_with_a_refused_address_after_an_allowed_one_does_not_reach_it(
    other: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def both(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1", port, *args, **options) + real(OTHER, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", both)
    # Nobody listens at this port of 127.0.0.1: the next address is tried.
    assert "does not reach" in refused_input(f"http://both.example:{other.port}/a", tmp_path, client(ONE))
    assert other.seen == []


def test_a_kept_connection_serves_the_client_whose_policy_let_it_pass_alone(web: Web, tmp_path: Path) -> None:
    web.on("/a", reply(200, b"x"))
    lenient, strict = client(ONE), client(AddressPolicy())
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        inputs.fetch([web.url + "/a"], tmp_path / f"{number}", lenient)
    assert len({seen.peer for seen in web.seen}) == 1
    (tmp_path / "strict").mkdir()
    refused_input(web.url + "/a", tmp_path / "strict", strict)
    assert len(web.seen) == 2


# Time


def dripping_body(handler: Handler) -> None:
    """A body without a length, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    _drip(handler, b"x")


def dripping_chunks(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    _drip(handler, b"1\r\nx\r\n")


def dripping_within_a_length(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    _drip(handler, b"x")


def to_be_continued(handler: Handler) -> None:
    _drip(handler, b"HTTP/1.1 100 Continue\r\n\r\n")


def _drip(handler: Handler, what: bytes) -> None:
    try:
        while not handler.web.stopping.wait(0.02):
            handler.wfile.write(what)
    except OSError:
        handler.web.dropped.set()
    handler.close_connection = True


def slow_redirects(handler: Handler) -> None:
    """Each of them within its limits, if it had any of its own."""
    handler.web.stopping.wait(0.15)
    handler.answer(307, Location=handler.path + "x")


@pytest.mark.parametrize("act", [drip, dripping_body, dripping_chunks, dripping_within_a_length, to_be_continued])
def test_a_server_that_drips_does_not_hold_a_slot(web: Web, tmp_path: Path, act: Reply) -> None:
    web.on("/a", act)
    start = time.monotonic()
    message = refused_input(web.url + "/a", tmp_path, client(allowance=0.3))
    assert "it was too slow: " in message and "Send one from a faster server." in message
    assert elapsed(start) < 2
    assert web.dropped.wait(5)
    assert len(web.seen) == 1


def test_the_time_is_one_for_all_redirects(web: Web, tmp_path: Path) -> None:
    web.on("*", slow_redirects)
    start = time.monotonic()
    assert "it was too slow" in refused_input(web.url + "/a", tmp_path, client(allowance=0.3))
    assert elapsed(start) < 2


def test_a_name_that_is_slow_to_resolve_takes_from_the_same_time(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def slow(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        time.sleep(0.4)
        return real("127.0.0.1", port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    web.on("/a", drip)
    start = time.monotonic()
    assert "it was too slow" in refused_input(f"http://slow.example:{web.port}/a", tmp_path, client(allowance=0.2))
    assert elapsed(start) < 2


def test_a_server_that_takes_an_upload_slowly_does_not_hold_a_slot(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the kernel has taken counts as sent, and it takes megabytes.
    monkeypatch.setattr("cog_celery.files.http_client.LEAST_RATE", 64 * MEBIBYTE)

    def swallow_slowly(handler: Handler) -> None:
        while not handler.web.stopping.wait(0.02):
            if not handler.connection.recv(100):
                handler.web.dropped.set()
                break
        handler.close_connection = True

    swallow_slowly.early = True  # type: ignore[attr-defined]
    web.on("*", swallow_slowly)
    (tmp_path / "out.bin").write_bytes(bytes(32 * MEBIBYTE))
    start = time.monotonic()
    with pytest.raises(UploadError, match=r"it was too slow: .* Use a faster server\."):
        Uploader(web.url, client=client(allowance=0.3)).for_prediction("p").upload(str(tmp_path / "out.bin"))
    assert elapsed(start) < 3


def test_an_exchange_that_moves_may_go_on(web: Web, tmp_path: Path) -> None:
    def steadily(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MEBIBYTE))
        for _ in range(8):
            handler.wfile.write(bytes(MEBIBYTE // 2))
            handler.web.stopping.wait(0.3)

    web.on("/a", steadily)
    start = time.monotonic()
    [path] = inputs.fetch([web.url + "/a"], tmp_path, client(allowance=1))
    assert path.stat().st_size == 4 * MEBIBYTE
    assert elapsed(start) > 1


def test_all_uploads_of_a_prediction_end_in_time(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cog_celery.files.outputs.TIMEOUT", 0.5)

    def slow(handler: Handler) -> None:
        handler.web.stopping.wait(0.2)
        handler.answer(200)

    web.on("*", slow)
    (tmp_path / "out.bin").write_bytes(b"x")
    uploads = Uploader(web.url, client=client()).for_prediction("p")
    start = time.monotonic()
    with pytest.raises(UploadError, match="it was too slow"):
        for _ in range(10):
            uploads.upload(str(tmp_path / "out.bin"))
    assert 0.5 <= elapsed(start) < 2


# Sizes


def test_a_gzip_bomb_is_stopped_at_the_limit_in_little_memory(web: Web, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(256 * MEBIBYTE), compresslevel=1)
    for name, encoding in (("gzip", "gzip"), ("upper", "GZIP"), ("old", "x-gzip")):
        web.on(f"/{name}", reply(200, bomb, Content_Encoding=encoding))
        (tmp_path / name).mkdir()
        tracemalloc.start()
        try:
            message = refused_input(f"{web.url}/{name}", tmp_path / name, client(), max_bytes=MEBIBYTE)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert "is larger than 1048576 bytes" in message
        assert peak < 8 * MEBIBYTE


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip,gzip,gzip,gzip,gzip,gzip", "br", "zstd", "deflate, br", "x"])
def test_other_encodings_are_refused(web: Web, tmp_path: Path, encoding: str) -> None:
    web.on("/a", reply(200, gzip.compress(gzip.compress(b"x")), Content_Encoding=encoding))
    assert "in an encoding that it was not asked for" in refused_input(web.url + "/a", tmp_path, client())


def test_a_deflated_answer_is_unpacked(web: Web, tmp_path: Path) -> None:
    web.on("/a", reply(200, zlib.compress(b"content"), Content_Encoding="deflate"))
    [path] = inputs.fetch([web.url + "/a"], tmp_path, client())
    assert path.read_bytes() == b"content"


def endless(head: bytes, piece: bytes) -> Reply:
    def act(handler: Handler) -> None:
        handler.wfile.write(head)
        try:
            while not handler.web.stopping.is_set():
                handler.wfile.write(piece)
        except OSError:
            handler.web.dropped.set()
        handler.close_connection = True

    return act


PIECE = bytes(1 << 16)


@pytest.mark.parametrize(
    "act",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n", PIECE),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + PIECE + b"\r\n"),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"7fffffffffffffff\r\n" + PIECE),
        endless(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", PIECE),
    ],
    ids=["no length", "chunks", "one chunk", "a length"],
)
def test_an_endless_body_is_cut_at_the_limit(web: Web, tmp_path: Path, act: Reply) -> None:
    web.on("/a", act)
    start = time.monotonic()
    assert "is larger than 1048576 bytes" in refused_input(web.url + "/a", tmp_path, client(), max_bytes=MEBIBYTE)
    assert elapsed(start) < 5
    assert web.dropped.wait(5)


@pytest.mark.parametrize(
    "act",
    [
        endless(b"HTTP/1.1 200 OK\r\nX-Long: ", PIECE.replace(b"\0", b"x")),
        endless(b"HTTP/1.1 200 OK\r\n", b"X-Many: x\r\n" * 100),
        endless(b"HTTP/1.1 200 ", PIECE.replace(b"\0", b"x")),
    ],
    ids=["a header", "headers", "a status"],
)
def test_endless_headers_are_cut(web: Web, tmp_path: Path, act: Reply) -> None:
    web.on("/a", act)
    assert "its answer is not HTTP" in refused_input(web.url + "/a", tmp_path, client())


def test_an_endless_answer_to_an_upload_is_not_read(web: Web, tmp_path: Path) -> None:
    web.on("*", endless(b"HTTP/1.1 200 OK\r\n\r\n", PIECE))
    (tmp_path / "out.bin").write_bytes(b"x")
    for mode in ("put", "multipart"):
        uploads = Uploader(web.url, mode, client=client()).for_prediction("p")
        start = time.monotonic()
        if mode == "put":
            assert uploads.upload(str(tmp_path / "out.bin")) == web.url + "/out.bin"
        else:
            with pytest.raises(UploadError, match="the answer is not"):
                uploads.upload(str(tmp_path / "out.bin"))
        assert elapsed(start) < 5


@pytest.mark.parametrize(
    ("lie", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n0123456789", b"01234"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n0123456789", "10 bytes came, 5 are missing"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n0123456789", b"0123456789"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n0123456789", "(InvalidHeader)"),
    ],
    ids=["too short", "too long", "negative", "two"],
)
def test_a_length_that_lies_bends_nothing(web: Web, tmp_path: Path, lie: bytes, outcome: bytes | str) -> None:
    web.on("/lie", raw(lie))
    web.on("/next", reply(200, b"next"))
    careful = client()
    if isinstance(outcome, bytes):
        [path] = inputs.fetch([web.url + "/lie"], tmp_path, careful)
        assert path.read_bytes() == outcome
    else:
        assert outcome in refused_input(web.url + "/lie", tmp_path, careful)
    # What was left of the answer is not taken for that of another request.
    (tmp_path / "next").mkdir()
    [path] = inputs.fetch([web.url + "/next"], tmp_path / "next", careful)
    assert path.read_bytes() == b"next"


def test_a_leftover_of_an_answer_is_not_the_answer_to_the_next_request(web: Web, tmp_path: Path) -> None:
    def two_answers(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    web.on("/a", two_answers)
    web.on("/b", reply(200, b"good"))
    careful = client()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        [path] = inputs.fetch([f"{web.url}/{name}"], tmp_path / name, careful)
        assert path.read_bytes() == b"good"


# In a fleet


def test_a_worker_reaches_what_its_operator_configured_and_nothing_else_of_its_machine(
    fleet: FleetFactory, web: Web
) -> None:
    web.on("/in.txt", reply(200, b"from the operator's server"))
    web.on("*", reply(200))
    with Web() as other:
        other.on("/in.txt", reply(200, b"inner secret"))
        producer = fleet("reads_file", upload_url=web.url + "/up", allow_addresses="files.invalid", lease=1).producer
        good = producer.predict({"file": web.url + "/in.txt"})
        assert good["status"] == "succeeded"
        assert "/cog-celery-runner-" in good["output"]  # where it is removed whoever is killed
        answer = producer.predict({"file": other.url + "/in.txt"})
        assert answer["status"] == "failed"
        assert (
            "its host 127.0.0.1 has an address of the machine itself, which this worker does not reach"
            in (answer["error"])
        )
        assert other.seen == []


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ({}, False),
        ({"allow_addresses": ("127.0.0.0/8",)}, True),
        ({"allow_addresses": ("127.0.0.0/8",), "deny_addresses": ("127.0.0.1/32",)}, False),
        ({"upload_url": "URL"}, True),
        ({"upload_url": "URL", "deny_addresses": ("127.0.0.1/32",)}, False),
    ],
)
def test_the_settings_reach_the_client(web: Web, tmp_path: Path, settings: dict[str, Any], reached: bool) -> None:
    web.on("/a", reply(200, b"x"))
    if "upload_url" in settings:
        settings = {**settings, "upload_url": web.url}
    configured = Uploader.of(Settings(**settings)).client
    if reached:
        assert inputs.fetch([web.url + "/a"], tmp_path, configured)
    else:
        refused_input(web.url + "/a", tmp_path, configured)
    assert len(web.seen) == reached


def test_a_person_who_predicts_here_may_name_servers_of_this_machine(web: Web) -> None:
    web.on("/in.txt", reply(200, b"content"))
    command = [sys.executable, "-m", "cog_celery", "predict", str(MODELS / "reads_file"), "-i"]
    for netloc, expected in ((web.netloc, "succeeded"), ("169.254.169.254", "failed")):
        run = subprocess.run(
            [*command, f"file=http://{netloc}/in.txt"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert json.loads(run.stdout)["status"] == expected, run.stderr
