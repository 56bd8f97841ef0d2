from __future__ import annotations

import base64
import gzip
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cog_celery.errors import Canceled, InputError
from cog_celery.files import downloads, inputs
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import TRIES, Client
from tests.support.web import (
    LOCAL,
    Handler,
    Reply,
    SilentPort,
    Web,
    closed_port,
    drip,
    elapsed,
    hang,
    hang_within,
    raw,
    reply,
)

ROOT = Path(__file__).parents[2]
SECRET = "hunter2secret"


@pytest.fixture
def web() -> object:
    with Web() as web:
        yield web


def one(url: str, folder: Path, client: Client, **limits: object) -> Path:
    [path] = inputs.fetch([url], folder, client=client, **limits)  # type: ignore[arg-type]
    return path


def refusal(url: str, folder: Path, client: Client, **limits: object) -> str:
    with pytest.raises(InputError) as caught:
        one(url, folder, client, **limits)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert not [path for path in folder.rglob("*") if path.is_file()]
    return str(caught.value)


def test_files_keep_their_names_and_their_order(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a/x.png", reply(200, b"one"))
    web.on("/b/x.png", reply(200, b"two"))
    web.on("/c/y%20z.txt", reply(200, b"three"))
    urls = [f"{web.url}/a/x.png?sig=1", f"{web.url}/b/x.png", "data:text/plain;base64,Zm91cg==", f"{web.url}/c/y z.txt"]
    paths = inputs.fetch(urls, tmp_path, client=client)
    assert [path.name for path in paths] == ["x.png", "x.png", "file.txt", "y z.txt"]
    assert [path.read_bytes() for path in paths] == [b"one", b"two", b"four", b"three"]
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert "GET /a/x.png?sig=1" in web.targets()


def test_nothing_to_fetch_is_nothing_done(tmp_path: Path) -> None:
    assert inputs.fetch([], tmp_path, Client()) == []
    assert list(tmp_path.iterdir()) == []


def test_files_are_downloaded_side_by_side(web: Web, client: Client, tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=10)

    def meet(handler: object) -> None:
        together.wait()
        handler.answer(200, b"x")  # type: ignore[attr-defined]

    web.on("*", meet)
    assert len(inputs.fetch([f"{web.url}/{n}" for n in range(3)], tmp_path, client=client)) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: Web, client: Client, tmp_path: Path, status: int) -> None:
    web.on("/from/a.png", reply(status, Location="../to/b.png?x=1"))
    web.on("/to/b.png", reply(200, b"moved"))
    path = one(web.url + "/from/a.png", tmp_path, client)
    assert (path.name, path.read_bytes()) == ("a.png", b"moved")


def test_redirects_are_limited(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/loop", reply(302, Location="/loop"))
    assert "more than 3 redirects" in refusal(web.url + "/loop", tmp_path, client)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("file:///etc/passwd", "'file' is not a valid URL scheme"),
        ("ftp://u:hunter2secret@h/", "'ftp' is not a valid URL scheme"),
        ("http://[", "the Location is not a URL"),
        ("http://0.0.0.0/", "an address of the machine itself"),
    ],
)
def test_redirects_pass_the_same_checks(web: Web, client: Client, tmp_path: Path, location: str, why: str) -> None:
    web.on("/a", reply(302, Location=location))
    assert why in refusal(web.url + "/a", tmp_path, client)


def test_the_message_names_the_server_that_a_redirect_led_to(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", reply(302, Location=f"/b?sig={SECRET}"))
    web.on("/b", reply(403))
    message = refusal(f"{web.url}/a?sig={SECRET}", tmp_path, client)
    assert message == (
        f"The input file {web.url}/a could not be fetched: it answered 403 Forbidden (after a redirect to "
        f"{web.url}/b). Send a URL that needs no credentials and has not expired."
    )


def test_credentials_in_a_url_are_sent_to_its_server_only(web: Web, client: Client, tmp_path: Path) -> None:
    with Web() as other:
        web.on("/a", reply(302, Location=other.url + "/b"))
        other.on("/b", reply(200, b"x"))
        one(f"http://user:p%40ss@{web.netloc}/a", tmp_path, client)
        assert web.seen[0].headers["Authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
        assert other.seen[0].headers["Authorization"] is None


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(web: Web, client: Client, tmp_path: Path, status: int) -> None:
    web.on("/a", reply(status), reply(status), reply(200, b"x"))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == b"x"


def test_retry_after_is_honored(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", reply(503, Retry_After="1"), reply(200, b"x"))
    start = time.monotonic()
    one(web.url + "/a", tmp_path, client)
    assert elapsed(start) >= 1


def test_a_server_that_stays_busy_is_given_up(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", reply(503))
    message = refusal(web.url + "/a", tmp_path, client)
    assert "it answered 503 Service Unavailable, 5 times. Try again later." in message
    assert len(web.seen) == TRIES


@pytest.mark.parametrize(
    ("status", "advice"), [(404, "Check that the file is still there."), (418, "Check the URL."), (304, "Check")]
)
def test_a_refusal_is_final(web: Web, client: Client, tmp_path: Path, status: int, advice: str) -> None:
    web.on("/a", reply(status))
    message = refusal(web.url + "/a", tmp_path, client)
    assert f"it answered {status}" in message and advice in message
    assert len(web.seen) == 1


def test_a_truncated_file_is_fetched_again(web: Web, client: Client, tmp_path: Path) -> None:
    truncated = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"y" * 700)
    web.on("/a", truncated, raw(b""), reply(200, b"complete"))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == b"complete"


def test_a_file_that_stays_truncated_is_an_error(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"y" * 700))
    message = refusal(web.url + "/a", tmp_path, client)
    assert "the connection broke off: 700 bytes came, 300 are missing, 5 times" in message


def test_a_truncated_chunked_file_is_an_error(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwo"))
    assert "the connection broke off" in refusal(web.url + "/a", tmp_path, client)


LONG = bytes(range(250)) * 4000
"""Longer than what is read at once, so that some of it is there when a connection breaks off."""


def cut(sent: int, *headers: str, length: int = len(LONG)) -> Reply:
    """The beginning of LONG, and the end of the connection."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {length}", *headers]
    return raw("\r\n".join([*lines, "", ""]).encode() + LONG[:sent])


def rest(etag: str = '"a"', *, shift: int = 0, total: int = len(LONG), sent: int | None = None) -> Reply:
    """What is asked for of LONG, with faults."""

    def act(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-")) + shift
        content = LONG[start:][:sent]
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{total - 1}/{total}\r\n"
        handler.raw(f"{head}Content-Length: {total - start}\r\nETag: {etag}\r\n\r\n".encode() + content)

    return act


def ranges(web: Web) -> list[tuple[str | None, str | None]]:
    return [(seen.headers["Range"], seen.headers["If-Range"]) for seen in web.seen]


def test_a_download_goes_on_where_it_broke_off(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", cut(600_000, 'ETag: "a"'), reply(503), rest(sent=300_000), raw(b""), rest())
    assert one(web.url + "/a", tmp_path, client).read_bytes() == LONG
    # Whole blocks are kept of what came.
    blocks = 600_000 // downloads.BLOCK
    first, second = (f"bytes={count * downloads.BLOCK}-" for count in (blocks, blocks + 300_000 // downloads.BLOCK))
    assert ranges(web) == [(None, None), (first, '"a"'), (first, '"a"'), (second, '"a"'), (second, '"a"')]


@pytest.mark.parametrize("age", [59, 60])
def test_a_time_that_has_settled_is_as_good_as_an_etag(web: Web, client: Client, tmp_path: Path, age: int) -> None:
    modified = "Mon, 02 Jan 2006 15:00:00 GMT"
    headers = (f"Last-Modified: {modified}", f"Date: Mon, 02 Jan 2006 15:00:{age} GMT".replace("00:60", "01:00"))
    web.on("/a", cut(600_000, *headers), rest() if age == 60 else reply(200, LONG))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == LONG
    assert web.seen[1].headers["If-Range"] == (modified if age == 60 else None)


@pytest.mark.parametrize(
    "headers", [(), ('ETag: W/"a"',), ('ETag: "a"', "Accept-Ranges: none"), ("Last-Modified: yesterday", "Date: today")]
)
def test_without_what_names_the_bytes_a_download_begins_anew(
    web: Web, client: Client, tmp_path: Path, headers: tuple[str, ...]
) -> None:
    web.on("/a", cut(600_000, *headers), reply(200, b"other"))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == b"other"
    assert ranges(web) == [(None, None)] * 2


def test_what_is_packed_begins_anew(web: Web, client: Client, tmp_path: Path) -> None:
    packed = gzip.compress(LONG * 2, 0)
    head = f'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n'
    web.on("/a", raw(head.encode() + packed[:1_500_000]), reply(200, packed, ETag='"a"', Content_Encoding="gzip"))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == LONG * 2
    assert ranges(web) == [(None, None)] * 2


def test_a_file_that_was_replaced_meanwhile_begins_anew(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", cut(600_000, 'ETag: "a"'), reply(200, b"other"))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == b"other"
    assert web.seen[1].headers["Range"]


@pytest.mark.parametrize(
    "wrong",
    [
        reply(416),
        rest(shift=1),
        rest(total=len(LONG) + 1),
        rest('"b"'),
        reply(206, LONG[-500:]),
        reply(206, LONG[-500:], Content_Range="bytes */1000000"),
        reply(206, LONG[-500:], Content_Range="bytes 999500-999999/1000000"),
    ],
)
def test_a_rest_that_does_not_fit_is_not_taken(web: Web, client: Client, tmp_path: Path, wrong: Reply) -> None:
    web.on("/a", cut(600_000, 'ETag: "a"'), wrong, reply(200, LONG))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == LONG
    assert [bool(seen.headers["Range"]) for seen in web.seen] == [False, True, False]


def test_the_rest_comes_from_where_the_beginning_came_from(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", reply(302, Location="/one"), reply(302, Location="/two"))
    web.on("/one", cut(600_000, 'ETag: "a"'))
    web.on("/two", rest(), reply(200, LONG))
    assert one(web.url + "/a", tmp_path, client).read_bytes() == LONG
    assert len(web.seen) == 6


def test_a_rest_that_never_comes_is_an_error(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", cut(600_000, 'ETag: "a"'), rest(sent=100))
    assert "the connection broke off" in refusal(web.url + "/a", tmp_path, client)
    assert len(web.seen) == TRIES


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 100_000])
def test_an_answer_that_is_not_http_is_an_error(web: Web, client: Client, tmp_path: Path, garbage: bytes) -> None:
    web.on("/a", raw(garbage))
    assert "its answer is not HTTP" in refusal(web.url + "/a", tmp_path, client)


def test_a_file_that_says_it_is_too_large_is_not_read(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", hang_within(b"x", 1001))
    message = refusal(f"{web.url}/a?{SECRET}", tmp_path, client, max_bytes=1000)
    assert message == f"The input file {web.url}/a is larger than 1000 bytes, the limit. Send a smaller one."


def test_a_file_that_turns_out_too_large_is_cut(web: Web, client: Client, tmp_path: Path) -> None:
    chunk = b"%x\r\n%b\r\n" % (600, b"x" * 600)
    web.on("/a", raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n"))
    assert "larger than 1000 bytes" in refusal(web.url + "/a", tmp_path, client, max_bytes=1000)
    assert one(web.url + "/a", tmp_path / "..", client, max_bytes=1200).stat().st_size == 1200


def test_a_compressed_answer_is_unpacked_within_the_limit(web: Web, client: Client, tmp_path: Path) -> None:
    packed = gzip.compress(b"x" * 10_000_000)
    web.on("/a", reply(200, packed, Content_Encoding="gzip"))
    assert "larger than 1000000 bytes" in refusal(web.url + "/a", tmp_path, client, max_bytes=1_000_000)
    assert web.seen[0].headers["Accept-Encoding"] == "identity"
    (tmp_path / "again").mkdir()
    assert one(web.url + "/a", tmp_path / "again", client).stat().st_size == 10_000_000


def test_a_broken_encoding_is_an_error(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", reply(200, b"no gzip", Content_Encoding="gzip"))
    assert "not in the encoding that it claims" in refusal(web.url + "/a", tmp_path, client)


def test_nobody_listening_is_an_error(client: Client, tmp_path: Path) -> None:
    message = refusal(f"http://{closed_port()}/a", tmp_path, client)
    assert "no connection (Connection refused), 5 times" in message


def test_an_unknown_name_is_an_error(client: Client, tmp_path: Path) -> None:
    message = refusal("http://no-such-host.invalid/a", tmp_path, client)
    assert "the name no-such-host.invalid" in message


def test_a_silent_server_is_given_up(web: Web, tmp_path: Path) -> None:
    client = Client(LOCAL, connect_timeout=1, read_timeout=0.1, first_delay=0.01)
    web.on("/a", hang)
    assert "it did not answer in time, 5 times" in refusal(web.url + "/a", tmp_path, client)


def test_a_server_that_drips_is_given_up(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", drip)
    start = time.monotonic()
    assert "did not arrive within 0.3 s" in refusal(web.url + "/a", tmp_path, client, timeout=0.3)
    assert elapsed(start) < 10
    assert web.dropped.wait(5)


def test_one_failure_ends_the_other_downloads(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/slow", hang)
    web.on("/gone", reply(404))
    start = time.monotonic()
    with pytest.raises(InputError, match="/gone could not be fetched: it answered 404"):
        inputs.fetch([web.url + "/slow"] * 3 + [web.url + "/gone"], tmp_path, client=client)
    assert elapsed(start) < 5


@pytest.mark.parametrize("kind", ["no answer", "within the body", "dripping", "redirected", "busy"])
def test_cancel_ends_a_download_at_once(web: Web, tmp_path: Path, kind: str) -> None:
    client = Client(LOCAL, first_delay=30)
    web.on("/hang", hang)
    reply_of = {
        "no answer": hang,
        "within the body": hang_within(b"x" * 300_000, 1_000_000),
        "dripping": drip,
        "redirected": reply(302, Location="/hang"),
        "busy": reply(503),
    }
    web.on("/a", reply_of[kind])
    assert_canceled(lambda: bool(web.seen), [web.url + "/a", web.url + "/a"], tmp_path, client)
    assert kind == "busy" or web.dropped.wait(5)


def test_cancel_ends_a_download_without_a_length(web: Web, tmp_path: Path) -> None:
    def no_length(handler: object) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nbegin")  # type: ignore[attr-defined]
        hang(handler)  # type: ignore[arg-type]

    web.on("/a", no_length)
    assert_canceled(lambda: bool(web.seen), [web.url + "/a"], tmp_path, Client(LOCAL))


def test_cancel_ends_a_tls_handshake(tmp_path: Path) -> None:
    with SilentPort() as port:
        assert_canceled(lambda: True, [f"https://{port.netloc}/a"], tmp_path, Client(LOCAL))


def test_cancel_ends_a_connection_attempt(tmp_path: Path) -> None:
    with SilentPort() as port:
        port.fill()
        assert_canceled(lambda: True, [f"http://{port.netloc}/a"], tmp_path, Client(LOCAL))


def test_cancel_does_not_wait_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def slow(*args: object, **kwargs: object) -> list[object]:
        asked.set()
        answered.wait(30)
        return []

    monkeypatch.setattr("socket.getaddrinfo", slow)
    assert_canceled(asked.is_set, ["http://slow.example/a"], tmp_path, Client(LOCAL))
    answered.set()


def assert_canceled(ready: object, urls: list[str], folder: Path, client: Client) -> None:
    cancel = Cancel()
    canceled_at: list[float] = []

    def set_when_ready() -> None:
        deadline = time.monotonic() + 10
        while not ready() and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.005)
        time.sleep(0.05)  # into the wait: nothing can be seen of it
        canceled_at.append(time.monotonic())
        cancel.set()

    thread = threading.Thread(target=set_when_ready)
    thread.start()
    with pytest.raises(Canceled):
        inputs.fetch(urls, folder, client=client, cancel=cancel)
    assert elapsed(canceled_at[0]) < 5
    thread.join()
    assert not [path for path in folder.rglob("*") if path.is_file()]
    client.close()


def test_a_prediction_that_is_canceled_already_fetches_nothing(web: Web, client: Client, tmp_path: Path) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Canceled):
        one(web.url + "/a", tmp_path, client, cancel=cancel)
    assert web.seen == []


def test_no_log_holds_a_query(web: Web, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    web.on("/a", raw(b"HTTP/1.1 302 Found\r\nLocation: /b?hunter2secret\r\nbroken header\r\n\r\n"))
    web.on("/b", reply(503), reply(200, b"x"))
    with caplog.at_level(logging.DEBUG):
        one(f"{web.url}/a?{SECRET}", tmp_path, client)
    assert SECRET not in caplog.text


def test_an_address_may_be_ipv6(client: Client, tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    try:
        web = Web(host="::1")
    except OSError:
        pytest.skip("there is no IPv6")
    with web:
        web.on("/a", reply(200, b"x"))
        assert one(web.url + "/a", tmp_path, client).read_bytes() == b"x"
        assert web.seen[0].headers["Host"] == web.netloc


def test_connections_are_kept(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/a", reply(302, Location="/b"))
    web.on("/b", reply(200, b"x"))
    for number in range(2):
        (tmp_path / f"{number}").mkdir()
        one(web.url + "/a", tmp_path / f"{number}", client)
    assert len({seen.peer for seen in web.seen}) == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://h/a", "'ftp' is not a valid URL scheme. 'data', 'http', or 'https' is supported."),
        ("/etc/passwd", "'' is not a valid URL scheme. 'data', 'http', or 'https' is supported."),
        ("file:///etc/passwd", "'file' is not a valid URL scheme. 'data', 'http', or 'https' is supported."),
        ("http://u:hunter2secret@:1/", "The URL http:… of an input file cannot be used: it names no host."),
        ("http://0.0.0.0/a", "its host 0.0.0.0 has an address of the machine itself, which this worker does not reach"),
    ],
)
def test_other_urls_are_refused(client: Client, tmp_path: Path, url: str, why: str) -> None:
    assert why in refusal(url, tmp_path, client)


def test_every_url_is_checked_before_anything_is_fetched(web: Web, client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        inputs.fetch([web.url + "/a", "data:broken"], tmp_path, client=client)
    assert web.seen == []


@pytest.mark.parametrize(
    ("url", "name", "content"),
    [
        ("data:,hello%20world", "file.txt", b"hello world"),
        ("data:text/plain;charset=utf-8,%C3%A9é", "file.txt", "éé".encode()),
        ("data:image/png;base64,iVBORw==", "file.png", b"\x89PNG"),
        ("data:image/webp;foo=bar;base64,AAE", "file.webp", b"\0\1"),
        ("data:IMAGE/JPEG;BASE64,AAE=", "file.jpg", b"\0\1"),
        ("DATA:;base64,_-8=", "file.txt", b"\xff\xef"),
        ("data:audio/wav;base64,AA%3D%3D", "file.wav", b"\0"),
        ("data:application/x-no-such;base64,A A E\n=", "file", b"\0\1"),
        ("data:application/octet-stream;base64,", "file.bin", b""),
        ("data:text/html,a,b?c#d", "file.html", b"a,b?c#d"),
        ("data:../../etc;base64,AAE=", "file", b"\0\1"),
    ],
)
def test_data_urls_are_decoded(client: Client, tmp_path: Path, url: str, name: str, content: bytes) -> None:
    path = one(url, tmp_path, client)
    assert (path.name, path.read_bytes()) == (name, content)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:;base64,hunter2secret!", "says that it is base64, and is not"),
        ("data:;base64,AAAAA", "says that it is base64, and is not"),
        ("data:,\ud800", "no Unicode text"),
        ("data:," + "x" * 1001, "larger than 1000 bytes"),
    ],
)
def test_broken_data_urls_are_refused(client: Client, tmp_path: Path, url: str, why: str) -> None:
    assert why in refusal(url, tmp_path, client, max_bytes=1000)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b.png", "b.png"),
        ("/a/b%20c%2Fd%00e.png", "b c_d_e.png"),
        ("/a/", "file"),
        ("/", "file"),
        ("/a/..", "file"),
        ("/%2e%2e", "file"),
        ("/%2e%2e%2fpasswd", ".._passwd"),
        ("/%ff.png", "�.png"),
        ("/line%0Abreak", "line_break"),
        ("/" + "a" * 250 + ".png", "a" * 195 + "~.png"),
        ("/" + quote("é" * 150) + ".png", "é" * 97 + "~.png"),
        ("/" + "a" * 250, "a" * 199 + "~"),
        ("/a." + "b" * 250, "a." + "b" * 197 + "~"),
        ("/." + "b" * 250, "." + "b" * 198 + "~"),
    ],
)
def test_the_local_name_is_the_urls(path: str, name: str) -> None:
    assert inputs.local_name(path) == name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.binary(max_size=300))
def test_any_name_is_a_name_in_its_folder(tmp_path: Path, text: str, data: bytes) -> None:
    for path in ("/" + quote(text, errors="replace"), "/" + quote(data), text.encode(errors="replace").decode()):
        name = inputs.local_name(path)
        assert 0 < len(name.encode()) <= inputs.MAX_NAME_BYTES
        file = tmp_path / name
        file.touch()
        assert file.resolve().parent == tmp_path.resolve()
        file.unlink()


def test_a_full_disk_is_named(web: Web, tmp_path: Path) -> None:
    web.on("/a.bin", reply(200, b"x" * 3_000_000))
    script = """
import resource, sys
from pathlib import Path
from cog_celery import errors
from cog_celery.files import inputs
from cog_celery.files.http_client import Client
from tests.support.web import LOCAL
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    inputs.fetch([sys.argv[1]], Path(sys.argv[2]), Client(LOCAL))
except errors.InputError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, web.url + "/a.bin", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.strip() == (
        f"The input file {web.url}/a.bin could not be stored: File too large. "
        "Make room on the worker's disk for temporary files."
    ), run.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
