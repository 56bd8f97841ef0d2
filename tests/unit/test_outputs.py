from __future__ import annotations

import base64
import json
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cog_celery.errors import Canceled, UploadError, UsageError
from cog_celery.files import mime, outputs
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import TRIES, Client
from cog_celery.files.output_files import OutputFile, open_output
from cog_celery.files.outputs import MAX_COPY, MAX_OPEN, PARALLEL, Uploader
from tests.support.web import LOCAL, Handler, Seen, Web, closed_port, elapsed, hang, raw, reply

SECRET = "hunter2secret"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def made(folder: Path, name: str = "out.png", content: bytes = b"picture") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def refusal(uploader: Uploader, path: str, **options: object) -> str:
    with pytest.raises(UploadError) as caught:
        uploader.for_prediction("p", **options).upload(path)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


# The raw PUT


@pytest.mark.parametrize("base", ["/files", "/files/", "/files?token=hunter2secret"])
def test_a_file_is_put_below_the_upload_url(web: Web, client: Client, tmp_path: Path, base: str) -> None:
    web.on("/files/out.png", reply(200))
    uploads = Uploader(web.url + base, client=client).for_prediction("p-1", None, {"traceparent": TRACEPARENT})
    assert uploads.upload(made(tmp_path)) == web.url + "/files/out.png"
    [seen] = web.seen
    assert (seen.method, seen.body) == ("PUT", b"picture")
    assert seen.target == "/files/out.png" + base[len("/files") :].removeprefix("/")
    assert seen.headers["Content-Type"] == "image/png"
    assert seen.headers["Content-Length"] == "7"
    assert seen.headers["Transfer-Encoding"] is None
    assert seen.headers["X-Prediction-ID"] == "p-1"
    assert seen.headers["traceparent"] == TRACEPARENT


def test_an_empty_file_is_uploaded(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(201))
    Uploader(web.url, client=client).for_prediction("p").upload(made(tmp_path, content=b""))
    assert web.seen[0].headers["Content-Length"] == "0"


@pytest.mark.parametrize(
    ("location", "output"),
    [
        ("https://cdn.example/x.png?sig=hunter2secret#f", "https://cdn.example/x.png"),
        ("/elsewhere/x.png", "{web}/elsewhere/x.png"),
        ("x.png", "{web}/files/x.png"),
        ("https://u:hunter2secret@cdn.example/x.png", "https://cdn.example/x.png"),
    ],
)
def test_the_output_is_the_location(web: Web, client: Client, tmp_path: Path, location: str, output: str) -> None:
    web.on("/files/out.png", reply(201, Location=location))
    uploads = Uploader(web.url + "/files", client=client).for_prediction("p")
    assert uploads.upload(made(tmp_path)) == output.format(web=web.url)


@pytest.mark.parametrize("location", ["javascript:alert(1)", "ftp://u:hunter2secret@h/", "data:,x", "http://["])
def test_a_location_that_is_no_http_url_is_refused(web: Web, client: Client, tmp_path: Path, location: str) -> None:
    web.on("*", reply(201, Location=location))
    assert "whose Location cannot be used" in refusal(Uploader(web.url, client=client), made(tmp_path))


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_gets_the_whole_file_again(web: Web, client: Client, tmp_path: Path, status: int) -> None:
    with Web() as bucket:
        web.on("/out.bin", reply(status, Location=f"{bucket.url}/bucket/key?X-Signature={SECRET}"))
        bucket.on("/bucket/key", reply(200))
        content = os.urandom(1 << 20)
        uploads = Uploader(web.url, client=client).for_prediction("p")
        assert uploads.upload(made(tmp_path, "out.bin", content)) == bucket.url + "/bucket/key"
        [stored] = bucket.seen
        assert stored.body == content
        assert stored.target == f"/bucket/key?X-Signature={SECRET}"
        assert stored.headers["Content-Length"] == str(1 << 20)


def test_a_redirect_may_come_before_the_file_is_read(web: Web, client: Client, tmp_path: Path) -> None:
    def early(handler: Handler) -> None:
        handler.raw(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /stored\r\nContent-Length: 0\r\n\r\n")

    early.early = True  # type: ignore[attr-defined]
    web.on("/out.bin", early)
    web.on("/stored", reply(200))
    uploads = Uploader(web.url, client=client).for_prediction("p")
    assert uploads.upload(made(tmp_path, "out.bin", bytes(20_000_000))) == web.url + "/stored"
    assert web.seen[-1].length == 20_000_000


@pytest.mark.parametrize("status", [300, 301, 302, 303])
def test_other_redirects_are_errors_that_say_so(web: Web, client: Client, tmp_path: Path, status: int) -> None:
    web.on("/out.png", reply(status, Location="/stored"))
    message = refusal(Uploader(web.url, client=client), made(tmp_path))
    assert f"it answered {status}" in message
    assert "Only redirects with 307 or 308 keep the file" in message
    assert len(web.seen) == 1


@pytest.mark.parametrize(
    ("location", "why"),
    [
        (None, "without a Location"),
        ("ftp://h/", "it redirected to a URL that cannot be used"),
        ("/out.png", "more than 3 redirects"),
        ("http://0.0.0.0/", "an address of the machine itself"),
    ],
)
def test_bad_redirects_are_errors(web: Web, client: Client, tmp_path: Path, location: str | None, why: str) -> None:
    web.on("/out.png", reply(307, **({"Location": location} if location else {})))
    assert why in refusal(Uploader(web.url, client=client), made(tmp_path))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_tried_again_with_the_whole_file(
    web: Web, client: Client, tmp_path: Path, status: int
) -> None:
    web.on("/out.png", reply(status), raw(b""), reply(200))
    assert Uploader(web.url, client=client).for_prediction("p").upload(made(tmp_path)) == web.url + "/out.png"
    assert [seen.body for seen in web.seen] == [b"picture"] * 3


def test_another_try_asks_for_a_new_redirect(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/out.png", reply(307, Location="/first"), reply(307, Location="/second"))
    web.on("/first", reply(503))
    web.on("/second", reply(200))
    assert Uploader(web.url, client=client).for_prediction("p").upload(made(tmp_path)) == web.url + "/second"


def test_retry_after_is_honored(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/out.png", reply(429, Retry_After="1"), reply(200))
    start = time.monotonic()
    Uploader(web.url, client=client).for_prediction("p").upload(made(tmp_path))
    assert elapsed(start) >= 1


def test_a_forbidden_upload_is_final_and_says_by_whom(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/up/out.png", reply(403, SECRET.encode()))
    message = refusal(Uploader(f"{web.url}/up?sig={SECRET}", client=client), made(tmp_path))
    assert message == (
        f"The output file out.png could not be uploaded to {web.url}/up/out.png: it answered 403 Forbidden. "
        "Check that the upload URL has not expired and allows a PUT."
    )
    assert len(web.seen) == 1


def test_a_server_that_stays_away_is_given_up(client: Client, tmp_path: Path) -> None:
    message = refusal(Uploader(f"http://{closed_port()}", client=client), made(tmp_path))
    assert "no connection (Connection refused), 5 times" in message
    assert "Check that the server is up" in message


def test_a_server_that_stays_busy_is_given_up(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/out.png", reply(503))
    assert "it answered 503 Service Unavailable, 5 times" in refusal(Uploader(web.url, client=client), made(tmp_path))
    assert len(web.seen) == TRIES


def test_a_silent_server_is_given_up(web: Web, tmp_path: Path) -> None:
    web.on("/out.png", hang)
    client = Client(LOCAL, connect_timeout=1, read_timeout=0.1, first_delay=0.01)
    assert "it did not answer in time, 5 times" in refusal(Uploader(web.url, client=client), made(tmp_path))


def test_connections_are_kept(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200))
    uploads = Uploader(web.url, client=client).for_prediction("p")
    for _ in range(3):
        uploads.upload(made(tmp_path))
    assert len({seen.peer for seen in web.seen}) == 1


# The form


def form(seen: Seen) -> tuple[str, str, bytes]:
    """File name, media type and content of a multipart body with one part."""
    boundary = seen.headers["Content-Type"].partition("boundary=")[2].encode()
    head, _, rest = seen.body.partition(b"\r\n\r\n")
    content, end = rest[: -len(boundary) - 8], rest[-len(boundary) - 8 :]
    assert head.startswith(b"--" + boundary + b'\r\nContent-Disposition: form-data; name="file"; filename="')
    assert end == b"\r\n--" + boundary + b"--\r\n"
    name = head.partition(b'filename="')[2].partition(b'"\r\n')[0].decode()
    return name, head.rpartition(b"Content-Type: ")[2].decode(), content


def answer_with_url(url: object) -> bytes:
    return json.dumps({"url": url}).encode()


def test_a_form_is_put_to_the_upload_url_itself(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/upload", reply(200, answer_with_url("http://cdn.example/é.png?keep=1")))
    uploads = Uploader(web.url + "/upload", "multipart", client=client).for_prediction("p")
    assert uploads.upload(made(tmp_path, 'my "é" file.png')) == "http://cdn.example/é.png?keep=1"
    [seen] = web.seen
    assert form(seen) == ("my %22é%22 file.png", "image/png", b"picture")
    assert seen.headers["Transfer-Encoding"] is None
    assert int(seen.headers["Content-Length"]) == seen.length


@pytest.mark.parametrize("status", [404, 405, 415])
def test_auto_finds_out_once_that_a_server_wants_forms(web: Web, client: Client, tmp_path: Path, status: int) -> None:
    web.on("/upload", reply(200, answer_with_url("http://cdn.example/1")))
    web.on("/upload/out.png", reply(status))
    uploader = Uploader(web.url + "/upload", client=client)
    for _ in range(2):
        assert uploader.for_prediction("p").upload(made(tmp_path)) == "http://cdn.example/1"
    assert web.targets() == ["PUT /upload/out.png", "PUT /upload", "PUT /upload"]


def test_auto_stays_with_the_raw_put_once_it_worked(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/upload/out.png", reply(200), reply(404))
    uploader = Uploader(web.url + "/upload", client=client)
    uploader.for_prediction("p").upload(made(tmp_path))
    assert "it answered 404 Not Found" in refusal(uploader, made(tmp_path))
    assert len(web.seen) == 2


def test_auto_takes_no_form_for_the_target_of_a_redirect(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/upload/out.png", reply(307, Location="/bucket"))
    message = refusal(Uploader(web.url + "/upload", client=client), made(tmp_path))
    assert f"it answered 404 Not Found (after a redirect to {web.url}/bucket)" in message


def test_auto_names_both_refusals_and_forgets_them(web: Web, client: Client, tmp_path: Path) -> None:
    uploader = Uploader(web.url + "/upload", client=client)
    message = refusal(uploader, made(tmp_path))
    assert f"(to a form; a raw PUT to {web.url}/upload/out.png: it answered 404 Not Found)" in message
    web.on("/upload/out.png", reply(200))
    assert uploader.for_prediction("p").upload(made(tmp_path)) == web.url + "/upload/out.png"


def test_put_never_sends_a_form(web: Web, client: Client, tmp_path: Path) -> None:
    assert "it answered 404" in refusal(Uploader(web.url + "/upload", "put", client=client), made(tmp_path))
    assert len(web.seen) == 1


def test_a_form_follows_redirects(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("/upload", reply(308, Location="/new"))
    web.on("/new", reply(200, answer_with_url("http://cdn.example/1")))
    Uploader(web.url + "/upload", "multipart", client=client).for_prediction("p").upload(made(tmp_path))
    assert form(web.seen[1]) == form(web.seen[0])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"OK",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        answer_with_url(None),
        answer_with_url(""),
        answer_with_url("no url"),
        answer_with_url("javascript:alert(1)"),
        answer_with_url("http://h/\r\nx"),
        answer_with_url("http://["),
        answer_with_url("http://h/" + "x" * 20_000),
        b" " * 1_100_000 + answer_with_url("http://h/"),
    ],
)
def test_an_answer_without_a_url_is_an_error(web: Web, client: Client, tmp_path: Path, answer: bytes) -> None:
    web.on("/upload", reply(200, answer))
    message = refusal(Uploader(web.url + "/upload", "multipart", client=client), made(tmp_path))
    assert 'the answer is not {"url": "…"}' in message


# URLs that came with the request


def test_presigned_urls_are_used_in_output_order(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200, Location="http://ignored.example/"))
    urls = [f"{web.url}/{n}?X-Signature={SECRET}{n}" for n in range(2)]
    uploads = Uploader("http://unused.example/", "multipart", client=client).for_prediction("p", urls)
    assert [uploads.upload(made(tmp_path)) for _ in urls] == [f"{web.url}/0", f"{web.url}/1"]
    assert web.targets() == [f"PUT /{n}?X-Signature={SECRET}{n}" for n in range(2)]
    assert [seen.body for seen in web.seen] == [b"picture"] * 2
    with pytest.raises(UploadError, match="brought 2 output_upload_urls, and this prediction has more files"):
        uploads.upload(made(tmp_path))


def test_a_presigned_url_that_was_refused_is_named_without_its_signature(
    web: Web, client: Client, tmp_path: Path
) -> None:
    web.on("*", reply(403))
    message = refusal(Uploader(None, client=client), made(tmp_path), upload_urls=[f"{web.url}/key?sig={SECRET}"])
    assert f"could not be uploaded to {web.url}/key: it answered 403 Forbidden" in message


@pytest.mark.parametrize("url", ["ftp://u:hunter2secret@h/", "", "/etc/passwd", "http://u:hunter2secret@:0/"])
def test_presigned_urls_are_checked_before_anything_runs(url: str) -> None:
    with pytest.raises(UploadError, match="in output_upload_urls cannot be used") as caught:
        Uploader(None, client=Client()).for_prediction("p", ["http://h/", url])
    assert SECRET not in str(caught.value)


def test_nothing_is_put_to_a_url_of_the_request_once_the_attempt_is_over(
    web: Web, client: Client, tmp_path: Path
) -> None:
    web.on("/0", reply(200))
    web.on("/1", reply(503), reply(200))
    confirmed: list[int] = []

    def confirm() -> None:
        confirmed.append(len(web.seen))
        if len(confirmed) == 3:
            raise Canceled("another owns it")

    urls = [f"{web.url}/{n}" for n in range(2)]
    uploads = Uploader(None, client=client).for_prediction("p", urls, confirm=confirm)
    assert uploads.upload(made(tmp_path)) == urls[0]
    with pytest.raises(Canceled):
        uploads.upload(made(tmp_path))
    assert confirmed == [0, 1, 2]  # right before each sending, another try too
    assert web.targets() == ["PUT /0", "PUT /1"]


# Data URIs


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image/png"),
        ("a.webp", "image/webp"),
        ("a.flac", "audio/flac"),
        ("a.m4a", "audio/mp4"),
        ("a.glb", "model/gltf-binary"),
        ("a.safetensors", "application/octet-stream"),
        ("a.jsonl", "application/jsonl"),
        ("A.PNG", "image/png"),
        ("a.tar.gz", "application/gzip"),
        ("a", "application/octet-stream"),
        ("data:text,a.png", "image/png"),
    ],
)
def test_without_an_upload_url_a_file_becomes_a_data_uri(tmp_path: Path, name: str, kind: str) -> None:
    output = Uploader(None, client=Client()).for_prediction("p").upload(made(tmp_path, name, b"\0\xffpicture"))
    assert output == f"data:{kind};base64,{base64.b64encode(bytes([0, 255]) + b'picture').decode()}"


def test_a_large_data_uri_is_refused(tmp_path: Path) -> None:
    uploader = Uploader("", client=Client(), max_data_uri_bytes=1000)
    assert uploader.for_prediction("p").upload(made(tmp_path, content=bytes(1000)))
    message = refusal(uploader, made(tmp_path, content=bytes(1001)))
    assert message == (
        "The output file out.png has 1001 bytes, and a data URI may have 1000. "
        "Start the worker with an upload URL, or send output_upload_urls with the request."
    )


def test_data_uris_of_a_prediction_have_a_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_DATA_URIS_BYTES", 1000)
    uploads = Uploader(None, client=Client()).for_prediction("p")
    for _ in range(2):
        assert uploads.upload(made(tmp_path, content=bytes(500)))
    with pytest.raises(UploadError) as caught:
        uploads.upload(made(tmp_path, "one.bin", b"x"))
    assert str(caught.value) == (
        "The output files up to one.bin have 1001 bytes together, and as data URIs those of a prediction may have "
        "1000. Start the worker with an upload URL, or send output_upload_urls with the request."
    )


def test_a_media_type_has_an_extension() -> None:
    assert mime.extension_of("audio/x-wav") == mime.extension_of("audio/wav") == ".wav"
    assert mime.extension_of(" Image/WebP ") == ".webp"
    assert mime.extension_of("no/such") == ""


# Names


def test_equal_names_in_one_prediction_stay_apart(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200))
    uploader = Uploader(web.url, client=client)
    uploads = uploader.for_prediction("p")
    names = ["a/out.png", "b/out-1.png", "c/out.png", "d/out.png", "e/noext", "f/noext", "g/.hidden", "h/.hidden"]
    outputs = [uploads.upload(made(tmp_path, name)) for name in names]
    assert [url.rpartition("/")[2] for url in outputs] == [
        "out.png",
        "out-1.png",
        "out-2.png",
        "out-3.png",
        "noext",
        "noext-1",
        ".hidden",
        ".hidden-1",
    ]
    assert uploader.for_prediction("q").upload(made(tmp_path)) == web.url + "/out.png"


@pytest.mark.parametrize("mode", ["put", "multipart"])
def test_a_later_attempt_has_names_of_its_own(web: Web, client: Client, tmp_path: Path, mode: str) -> None:
    web.on("*", reply(200, answer_with_url("http://h/x")))
    uploader = Uploader(web.url, mode, client=client)
    names = ["out.png", "a/out.png", "out", "x.tar.gz"]
    for attempt in (1, 2, 3):
        uploads = uploader.for_prediction("p", attempt=attempt)
        for name in names:
            uploads.upload(made(tmp_path, name))
    sent = [seen.target[1:] for seen in web.seen]
    if mode == "multipart":
        sent = [seen.body.partition(b'filename="')[2].partition(b'"')[0].decode() for seen in web.seen]
    assert sent[:4] == ["out.png", "out-1.png", "out", "x.tar.gz"]
    assert sent[4:8] == ["out-attempt2.png", "out-attempt2-1.png", "out-attempt2", "x.tar-attempt2.gz"]
    assert len(set(sent)) == 12


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("a b?c#d%.png", "a%20b%3Fc%23d%25.png"),
        ("é.png", "%C3%A9.png"),
        ("x\r\nHost: evil", "x%0D%0AHost%3A%20evil"),
        ("a\\b;c&d=e+f", "a%5Cb%3Bc%26d%3De%2Bf"),
    ],
)
def test_a_file_name_is_made_safe_for_a_url(web: Web, client: Client, tmp_path: Path, name: str, quoted: str) -> None:
    web.on("*", reply(200))
    output = Uploader(web.url, client=client).for_prediction("p").upload(made(tmp_path, name))
    assert output == f"{web.url}/{quoted}"
    assert web.targets() == [f"PUT /{quoted}"]


def test_a_name_that_is_not_utf_8_is_uploaded(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200, answer_with_url("http://h/x")))
    path = made(tmp_path, os.fsdecode(b"\xff.png"))
    assert Uploader(web.url, client=client).for_prediction("p").upload(path).endswith(".png")
    assert Uploader(web.url, "multipart", client=client).for_prediction("p").upload(path) == "http://h/x"


# Headers


@pytest.mark.parametrize(
    ("id", "sent"),
    [("a/b:c", "a/b:c"), ("x\r\nEvil: 1", "x%0D%0AEvil:%201"), ("é%", "%C3%A9%25"), ("\ud800", "?"), ("", None)],
)
def test_the_prediction_id_is_safe_as_a_header(
    web: Web, client: Client, tmp_path: Path, id: str, sent: str | None
) -> None:
    web.on("*", reply(200))
    Uploader(web.url, client=client).for_prediction(id).upload(made(tmp_path))
    assert web.seen[0].headers["X-Prediction-ID"] == sent
    assert web.seen[0].headers["Evil"] is None


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_id_and_any_trace_make_headers(id: str, trace: str) -> None:
    sent = Uploader(None, client=Client()).for_prediction(id, None, {"traceparent": trace})._terms.headers
    assert all(value.isascii() and value.isprintable() and value.strip() for value in sent.values())


def test_a_trace_that_is_no_header_value_is_left_out(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200))
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=b\r\nEvil: 1"}
    Uploader(web.url, client=client).for_prediction("p", None, headers).upload(made(tmp_path))
    assert web.seen[0].headers["traceparent"] == TRACEPARENT
    assert web.seen[0].headers["tracestate"] is None


# What a predictor may give out


def test_the_number_of_output_files_is_limited(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200))
    for uploader in (Uploader(web.url, client=client, max_files=2), Uploader(None, client=client, max_files=2)):
        uploads = uploader.for_prediction("p")
        uploads.upload(made(tmp_path))
        uploads.upload(made(tmp_path))
        with pytest.raises(UploadError) as caught:
            uploads.upload(made(tmp_path))
        assert str(caught.value) == (
            "The prediction has more than 2 output files, the limit. "
            "Return fewer, or start the worker with another --max-output-files."
        )
        assert uploader.for_prediction("q").upload(made(tmp_path))
    assert len(web.seen) == 3


def test_the_size_of_all_output_files_is_limited(web: Web, client: Client, tmp_path: Path) -> None:
    web.on("*", reply(200))
    uploader = Uploader(web.url, client=client, max_bytes=1000)
    uploads = uploader.for_prediction("p")
    uploads.upload(made(tmp_path, content=bytes(600)))
    uploads.upload(made(tmp_path, content=bytes(400)))
    with pytest.raises(UploadError) as caught:
        uploads.upload(made(tmp_path, "one.bin", b"x"))
    assert str(caught.value) == (
        "The output files up to one.bin have 1001 bytes together, and those of a prediction may have 1000. "
        "Return smaller ones, or start the worker with another --max-output-bytes."
    )
    assert uploader.for_prediction("q").upload(made(tmp_path, content=bytes(1000)))
    assert [seen.length for seen in web.seen] == [600, 400, 1000]


def test_a_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    message = refusal(Uploader(None, client=Client()), str(tmp_path / "gone.png"))
    assert message == (
        "The output file gone.png does not exist. The predictor must leave its files until predict() has returned."
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "is a folder"),
        ("/dev/null", "lies among the files of the system itself"),
        ("relative.png", "was not given as an absolute path"),
        ("", "was not given as an absolute path"),
        ("/tmp/\0", "has a name that no file can have"),
        ("/tmp/\ud800", "has a name that no file can have"),
        ("/tmp/" + "a" * 300, "could not be opened: File name too long"),
    ],
)
def test_what_is_no_file_is_an_error(path: str, why: str) -> None:
    assert why in refusal(Uploader(None, client=Client()), path)


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is no regular file" in refusal(Uploader(None, client=Client()), str(tmp_path / "fifo"))


def test_a_link_is_followed(tmp_path: Path) -> None:
    os.symlink(made(tmp_path, "real.bin"), tmp_path / "out.png")
    assert (
        Uploader(None, client=Client())
        .for_prediction("p")
        .upload(str(tmp_path / "out.png"))
        .startswith("data:image/png;")
    )


@pytest.mark.parametrize("then", [b"other!!", b"longer than it was"], ids=["as long", "longer"])
def test_a_small_file_is_sent_as_it_was_given_out(web: Web, client: Client, tmp_path: Path, then: bytes) -> None:
    path = made(tmp_path)

    def rewrite(handler: Handler) -> None:
        Path(path).write_bytes(then)
        handler.answer(503)

    web.on("/out.png", rewrite, reply(200))
    Uploader(web.url, client=client).for_prediction("p").upload(path)
    assert [seen.body for seen in web.seen] == [b"picture", b"picture"]


@pytest.mark.parametrize(
    ("size", "why"), [(3, "became shorter"), (MAX_COPY + 1, "was changed"), (MAX_COPY + 2, "was changed")]
)
def test_a_large_file_that_changes_is_an_error(web: Web, client: Client, tmp_path: Path, size: int, why: str) -> None:
    path = made(tmp_path, content=bytes(MAX_COPY + 1))

    def rewrite(handler: Handler) -> None:
        Path(path).write_bytes(b"x" * size)
        handler.answer(503)

    web.on("/out.png", rewrite, reply(200))
    told = refusal(Uploader(web.url, client=client), path)
    assert f"{why} while it was uploaded. The predictor must not change a file" in told


def test_files_may_be_removed_once_they_were_given_out(web: Web, client: Client, tmp_path: Path) -> None:
    go = threading.Event()

    def hold(handler: Handler) -> None:
        go.wait(10)
        handler.answer(200)

    web.on("*", hold)
    uploads = Uploader(web.url, client=client).for_prediction("p")
    futures = []
    for index in range(MAX_OPEN):
        path = made(tmp_path, f"out-{index}.bin", b"%d " % index + bytes(MAX_COPY if index < 2 else 0))
        futures.append(uploads.start(path))
        os.unlink(path)
    open_before = uploads.all_open
    late = uploads.start(made(tmp_path, "out-late.bin"))
    assert (open_before, uploads.all_open) == (True, False)
    go.set()
    assert [future.result(30) for future in futures] == [f"{web.url}/out-{index}.bin" for index in range(MAX_OPEN)]
    assert late.result(30) == f"{web.url}/out-late.bin"
    assert {seen.target: seen.body.split()[0] for seen in web.seen if "late" not in seen.target} == {
        f"/out-{index}.bin": b"%d" % index for index in range(MAX_OPEN)
    }


def test_a_file_that_is_about_to_be_opened_is_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening, go = threading.Event(), threading.Event()

    def slowly(path: str, scratch: str | None = None) -> OutputFile:
        opening.set()
        go.wait(10)
        return open_output(path, scratch)

    monkeypatch.setattr(outputs, "open_output", slowly)
    uploads = Uploader(None, client=Client()).for_prediction("p")
    with ThreadPoolExecutor(2) as pool:
        uploaded = pool.submit(uploads.upload, made(tmp_path))
        assert opening.wait(10)
        asked = pool.submit(lambda: (uploads.all_open, go.is_set()))
        with pytest.raises(TimeoutError):
            assert asked.result(0.1) == (False, False)
        go.set()
        assert asked.result(10) == (True, True)
        assert uploaded.result(10).startswith("data:")


def test_open_files_of_many_predictions_leave_half_of_the_descriptors(
    web: Web, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 * 20, 10**6))
    go = threading.Event()

    def hold(handler: Handler) -> None:
        go.wait(10)
        handler.answer(200)

    web.on("*", hold)
    uploader = Uploader(web.url, client=client)
    predictions = [uploader.for_prediction(f"p{index}") for index in range(3)]
    futures = [uploads.start(made(tmp_path, f"{number}.bin")) for uploads in predictions for number in range(30)]
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    held = [link for link in links if os.path.islink(link) and os.readlink(link).startswith(str(tmp_path))]
    assert len(held) <= 20 + 2 * PARALLEL
    assert not any(uploads.all_open for uploads in predictions)
    go.set()
    assert all(future.result(30) for future in futures)
    assert uploader.for_prediction("q").upload(made(tmp_path))
    assert uploader.has_room


def test_without_a_limit_on_descriptors_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert Uploader(None, client=Client()).has_room


def test_few_files_of_a_prediction_are_sent_at_once(web: Web, client: Client, tmp_path: Path) -> None:
    go, started, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def hold(handler: Handler) -> None:
        with lock:
            started[0] += 1
            most[0] = max(most[0], started[0])
        go.wait(10)
        with lock:
            started[0] -= 1
        handler.answer(200)

    web.on("*", hold)
    uploads = Uploader(web.url, client=client).for_prediction("p")
    futures = [uploads.start(made(tmp_path, f"out-{index}.bin")) for index in range(20)]
    while started[0] < PARALLEL:
        assert not any(future.done() for future in futures)
    go.set()
    assert [future.result(30) for future in futures] == [f"{web.url}/out-{index}.bin" for index in range(20)]
    assert most[0] == PARALLEL


# Cancel, and the worker's own settings


@pytest.mark.parametrize("kind", ["no answer", "not reading", "busy"])
def test_cancel_ends_an_upload_at_once(web: Web, tmp_path: Path, kind: str) -> None:
    started = threading.Event()

    def stuck(handler: Handler) -> None:
        started.set()
        handler.web.stopping.wait(10)
        handler.close_connection = True

    stuck.early = kind == "not reading"  # type: ignore[attr-defined]

    def busy(handler: Handler) -> None:
        handler.answer(503, Retry_After="30")
        started.set()

    web.on("*", busy if kind == "busy" else stuck)
    cancel = Cancel()
    uploads = Uploader(web.url, client=Client(LOCAL)).for_prediction("p", cancel=cancel)
    canceled_at: list[float] = []

    def set_when_started() -> None:
        started.wait(10)
        time.sleep(0.1)  # into the wait: nothing can be seen of it
        canceled_at.append(time.monotonic())
        cancel.set()

    thread = threading.Thread(target=set_when_started)
    thread.start()
    with pytest.raises(Canceled):
        uploads.upload(made(tmp_path, content=bytes(20_000_000)))
    assert elapsed(canceled_at[0]) < 5
    thread.join()


def test_a_wrong_upload_url_is_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match="the upload URL ftp:… cannot be used") as caught:
        Uploader(f"ftp://u:{SECRET}@h/", client=Client())
    assert SECRET not in str(caught.value)
    with pytest.raises(UsageError, match="the upload mode 'post' is none of auto, put, multipart"):
        Uploader("http://h/", "post", client=Client())
