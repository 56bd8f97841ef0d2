"""A bucket as the place for files, on servers that check every signature."""

from __future__ import annotations

import datetime
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote
from urllib.request import urlopen

import botocore.auth
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cog_celery.errors import Canceled, UploadError, UsageError
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import TRIES, Client
from cog_celery.files.http_uploads import Terms
from cog_celery.files.output_files import OutputFile, open_output
from cog_celery.files.outputs import Uploader
from cog_celery.files.s3 import PART_BYTES, SINGLE_BYTES, Bucket, key_part
from cog_celery.settings import Settings
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.s3 import ACCESS_KEY, BUCKET, SECRET_KEY, Rclone, S3Server, kinds
from tests.support.servers import Server
from tests.support.web import LOCAL, SilentPort, Web, closed_port, elapsed, hang, reply

LARGE = SINGLE_BYTES + PART_BYTES + 1


@pytest.fixture(scope="module", params=kinds(), ids=lambda kind: kind.__name__)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = request.param(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in {**S3Server.nothing, **S3Server.keys}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, client: Client) -> Callable[..., Bucket]:
    """A bucket of the server at this URL."""

    def make(url: str, name: str = BUCKET, **options: Any) -> Bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        return Bucket(f"s3://{name}/out", client=options.pop("client", client), **options)

    return make


At = Callable[..., Bucket]


def made(folder: Path, name: str = "out.png", content: bytes = b"picture", size: int | None = None) -> OutputFile:
    path = folder / name
    path.write_bytes(content)
    if size is not None:
        os.truncate(path, size)
    return open_output(str(path))


def terms(cancel: Cancel | None = None, *, id: str = "p", seconds: float = 60.0) -> Terms:
    return Terms({"X-Prediction-ID": "p"}, cancel or Cancel(), time.monotonic() + seconds, "queue", id, "1-1")


def refusal(bucket: Bucket, file: OutputFile, terms: Terms | None = None) -> str:
    with pytest.raises(UploadError) as caught:
        bucket.store(file, file.name, terms or globals()["terms"]())
    message = str(caught.value)
    assert SECRET_KEY not in message
    assert ACCESS_KEY not in message
    assert "X-Amz" not in message
    assert caught.value.__cause__ is None
    return message


class Watched(OutputFile):
    """A file of which a test learns where it is read."""

    watch: Callable[[int], None] = staticmethod(lambda position: None)

    def read(self, position: int, most: int) -> bytes:
        self.watch(position)
        return super().read(position, most)


def watched(folder: Path, watch: Callable[[int], None], size: int = LARGE) -> Watched:
    file = made(folder, "large.bin", size=size)
    watched = Watched(file.name, file.type, os.dup(file.descriptor))
    watched.watch = watch
    return watched


# What arrives


@pytest.mark.parametrize("presigned", [False, True])
@pytest.mark.parametrize("size", [0, 7, LARGE])
def test_a_file_becomes_an_object(server: S3Server, at: At, tmp_path: Path, presigned: bool, size: int) -> None:
    content = os.urandom(size)
    file = made(tmp_path, f"{presigned}-{size}.png", content)
    output = at(server.url, presigned=presigned).store(file, file.name, terms())
    found = server.client.get_object(Bucket=BUCKET, Key=f"out/queue/p/{file.name}")
    assert found["ContentType"] == "image/png"
    assert found["Body"].read() == content
    with urlopen(output) as answer:
        assert answer.read() == content
    assert server.unfinished() == []


NAME = "a b+é%41?#&.png"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("s3", "s3://files/out/queue/p/a b+é%2541?#&.png"),
        ("public", "{url}/files/out/queue/p/a%20b%2B%C3%A9%252541%3F%23%26.png"),
        ("https://cdn.example/x/", "https://cdn.example/x/out/queue/p/a%20b%2B%C3%A9%252541%3F%23%26.png"),
    ],
)
def test_the_output_names_the_object_in_the_form_that_was_asked_for(
    server: S3Server, at: At, tmp_path: Path, output: str, expected: str
) -> None:
    file = made(tmp_path, NAME)
    assert at(server.url, output=output).store(file, NAME, terms()) == expected.format(url=server.url)
    assert "out/queue/p/a b+é%2541?#&.png" in server.objects()


def test_a_presigned_output_lasts_as_long_as_it_was_told(server: S3Server, at: At, tmp_path: Path) -> None:
    output = at(server.url, lifetime=77.5).store(made(tmp_path, NAME), NAME, terms())
    assert "X-Amz-Expires=78" in output
    with urlopen(output) as answer:
        assert answer.read() == b"picture"


def test_public_urls_are_of_the_style_that_the_client_is_set_to(
    monkeypatch: pytest.MonkeyPatch, at: At, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    bucket = at("https://s3.example:9000", output="public")
    assert bucket._output_of("a b") == "https://files.s3.example:9000/a%20b"
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    bucket = Bucket("s3://files", client=Client(LOCAL), output="public")
    assert bucket._output_of("a b") == "https://files.s3.eu-central-1.amazonaws.com/a%20b"


# Keys


@given(st.text(), st.text())
def test_a_part_of_a_key_is_harmless_and_different_for_different_texts(one: str, other: str) -> None:
    part = key_part(one)
    assert "/" not in part
    assert "\\" not in part
    assert part not in ("", ".", "..")
    assert part.isprintable()
    assert unquote(part) == one or not one
    assert (part == key_part(other)) == (one == other)


@pytest.mark.parametrize(
    "value", ["", ".", "..", "/", "../../etc", "a/../b", "\0", "\ud800", "a\r\nb", "%2E", "…", "."]
)
def test_hostile_values_stay_within_their_part_of_the_key(client: Client, value: str) -> None:
    bucket = Bucket("s3://files/out", client=client, key="{queue}/{id}/{entry}-{name}")
    queue, id, name = bucket.key("n", terms(id=value)).removeprefix("out/").split("/")
    assert (queue, name) == ("queue", "1-1-n")
    assert id not in ("", ".", "..")
    assert id.isprintable()


def test_a_key_that_is_too_long_is_refused_by_its_length_in_bytes(client: Client, tmp_path: Path) -> None:
    bucket = Bucket("s3://files", client=client, key="/{id}{name}")
    assert bucket.key("n", terms(id="é" * 511)) == "é" * 511 + "n"
    message = refusal(bucket, made(tmp_path, "nn"), terms(id="é" * 512))
    assert "would have a key of 1026 bytes in the bucket files, and S3 allows 1024" in message


@pytest.mark.parametrize(("url", "key"), [("s3://files/a/../b", "{name}"), ("s3://files", "{id}/./{name}")])
def test_dots_between_slashes_are_refused_at_the_start(client: Client, url: str, key: str) -> None:
    with pytest.raises(UsageError, match=r"have a \. or \.\. between slashes"):
        Bucket(url, client=client, key=key)


# Refusals


@pytest.mark.parametrize("presigned", [False, True])
@pytest.mark.parametrize("size", [7, SINGLE_BYTES + 1])
def test_refusals_say_which(
    server: S3Server, at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presigned: bool, size: int
) -> None:
    file = made(tmp_path, size=size)
    where = "The output file out.png could not be uploaded to s3://files/out/queue/p/out.png: "
    if isinstance(server, Rclone):  # the other one makes buckets
        assert "s3://nobody/out/queue/p/out.png: there is no such bucket (NoSuchBucket). Make it" in refusal(
            at(server.url, "nobody", presigned=presigned), file
        )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong")
    assert refusal(at(server.url, presigned=presigned), file) == where + (
        "the secret key does not belong to the access key (SignatureDoesNotMatch). Check AWS_SECRET_ACCESS_KEY."
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-wrong")
    assert refusal(at(server.url, presigned=presigned), file) == where + (
        "it does not know the access key (InvalidAccessKeyId). Use one that has not been deleted."
    )


@pytest.mark.parametrize("presigned", [False, True])
def test_credentials_that_are_missing_are_looked_for_again(
    server: S3Server, at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presigned: bool
) -> None:
    for name in S3Server.keys:
        monkeypatch.delenv(name)
    bucket = at(server.url, presigned=presigned)
    file = made(tmp_path)
    assert "the worker has no credentials for it. Set AWS_ACCESS_KEY_ID" in refusal(bucket, file)
    for name, value in S3Server.keys.items():
        monkeypatch.setenv(name, value)
    bucket.store(file, "late.png", terms())
    assert "out/queue/p/late.png" in server.objects()


@pytest.mark.parametrize("presigned", [False, True])
def test_credentials_that_are_refused_are_looked_for_again(
    server: S3Server, at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presigned: bool
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OLD")
    bucket = at(server.url, presigned=presigned)
    file = made(tmp_path)
    assert "it does not know the access key" in refusal(bucket, file)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    bucket.store(file, "renewed.png", terms())
    assert "out/queue/p/renewed.png" in server.objects()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>", "credentials cannot be renewed."),
        ("<html><p>", "the request could not be made (ResponseParserError)."),
    ],
)
@pytest.mark.parametrize("presigned", [False, True])
def test_whoever_refuses_credentials_is_not_taken_for_the_bucket(
    at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, presigned: bool, answer: str, told: str
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/canary\nsource_profile = own\n"
        "[profile own]\naws_access_key_id = canary\naws_secret_access_key = canary\n"
    )
    for name in S3Server.keys:
        monkeypatch.delenv(name)
    with Web() as web:
        web.on("*", reply(403, answer.encode()))
        for name, value in {
            "AWS_CONFIG_FILE": str(config),
            "AWS_PROFILE": "role",
            "AWS_ENDPOINT_URL_STS": web.url,
        }.items():
            monkeypatch.setenv(name, value)
        message = refusal(at(f"http://{closed_port()}", presigned=presigned), made(tmp_path))
    assert told in message and "Allow" not in message


ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{} canary-secret-key-of-the-tests</Message></Error>'


@pytest.mark.parametrize("presigned", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "AccessDenied", "access was denied (AccessDenied). Allow the worker s3:PutObject"),
        (400, "ExpiredToken", "the worker's credentials have expired (ExpiredToken). Renew them."),
        (403, "RequestTimeTooSkewed", "the clock of the worker is wrong (RequestTimeTooSkewed). Set it"),
        (400, "EntityTooLarge", "the file is too large for it (EntityTooLarge)."),
        (400, "XAmzContentSHA256Mismatch", "it got something else than was sent (XAmzContentSHA256Mismatch)"),
        (409, "Strange", "it answered 409 (Strange)."),
        (409, "Str&lt;ange\n", "it answered 409"),
    ],
)
def test_what_aws_answers_is_told(at: At, tmp_path: Path, status: int, code: str, told: str, presigned: bool) -> None:
    with Web() as web:
        web.on("*", reply(status, ERROR.format(code, "").encode()))
        message = refusal(at(web.url, presigned=presigned), made(tmp_path))
        if presigned and code.startswith("Str"):
            told = "it answered 409 Conflict"
        assert told in message
        assert len(web.seen) == 1


@pytest.mark.parametrize("answer", [b"", b"<Error>", b"\xff\0<", b"<Error><Code>" + b"A" * 5000, b"x" * 3_000_000])
@pytest.mark.parametrize("presigned", [False, True])
def test_answers_that_make_no_sense_are_refusals(at: At, tmp_path: Path, answer: bytes, presigned: bool) -> None:
    with Web() as web:
        web.on("*", reply(403, answer))
        assert len(refusal(at(web.url, presigned=presigned), made(tmp_path))) < 400


BEGUN = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"


@pytest.mark.parametrize(
    ("answers", "lacks"), [([b""], "UploadId"), ([b"<html/>"], "UploadId"), ([BEGUN, b""], "ETag")]
)
def test_a_server_of_something_else_is_told_from_one_of_s3(
    at: At, tmp_path: Path, answers: list[bytes], lacks: str
) -> None:
    with Web() as web:
        web.on("*", *(reply(200, answer) for answer in answers))
        message = refusal(at(web.url), made(tmp_path, size=LARGE))
        assert f"it does not answer as S3 does, without {lacks}. Check AWS_ENDPOINT_URL_S3" in message


@pytest.mark.parametrize("presigned", [False, True])
def test_a_busy_server_gets_another_try(at: At, tmp_path: Path, presigned: bool) -> None:
    with Web() as web:
        busy = reply(503, ERROR.format("SlowDown", "").encode())
        web.on("*", busy, busy, reply(200, ETag='"x"'))
        bucket = at(web.url, output="s3", presigned=presigned)
        assert bucket.store(made(tmp_path), "n", terms()) == "s3://files/out/queue/p/n"
        assert [seen.body for seen in web.seen] == [b"picture"] * 3
        assert {seen.headers["Content-Length"] for seen in web.seen} == {"7"}
        web.on("*", busy)
        message = refusal(bucket, made(tmp_path))
        assert f", {TRIES} times" in message


def test_a_redirect_is_not_followed(at: At, tmp_path: Path) -> None:
    with Web() as web, Web() as other:
        web.on("*", reply(307, Location=other.url + "/x"))
        assert "it answered 307" in refusal(at(web.url, presigned=True), made(tmp_path))
        assert other.seen == []


# Faults on the way


def test_a_server_that_is_down_is_named(at: At, tmp_path: Path) -> None:
    netloc = closed_port()
    message = refusal(at(f"http://{netloc}"), made(tmp_path))
    assert (
        f"to s3://files/out/queue/p/out.png at {netloc}: no connection (Connection refused), 5 times. Check" in message
    )


def test_a_server_that_takes_no_connection_is_given_up(at: At, tmp_path: Path) -> None:
    with SilentPort() as port:
        port.fill()
        client = Client(LOCAL, connect_timeout=0.1, read_timeout=0.1, first_delay=0.01)
        message = refusal(at(f"http://{port.netloc}", client=client), made(tmp_path))
        assert "no connection within 0.1 s, 5 times" in message


@pytest.mark.parametrize("size", [7, LARGE])
@pytest.mark.parametrize("presigned", [False, True])
def test_cancel_ends_an_upload_that_hangs(at: At, tmp_path: Path, size: int, presigned: bool) -> None:
    with Web() as web:
        web.on("*", hang)
        cancel = Cancel()
        bucket = at(web.url, presigned=presigned)
        timer = threading.Timer(0.2, cancel.set)
        timer.start()
        start = time.monotonic()
        with pytest.raises(Canceled):
            bucket.store(made(tmp_path, size=size), "n", terms(cancel))
        assert elapsed(start) < 2  # seconds that it waits for an answer
        timer.join()


def test_all_ends_when_the_time_is_over(at: At, tmp_path: Path) -> None:
    with Web() as web:
        web.on("*", hang)
        bucket, path = at(web.url), made(tmp_path)
        start = time.monotonic()
        assert "it was too slow" in refusal(bucket, path, terms(seconds=0.2))
        assert elapsed(start) < 2


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(cast(Server, server))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_canceled_upload_leaves_no_parts(server: S3Server, proxy: Proxy, at: At, tmp_path: Path, hangs: bool) -> None:
    cancel = Cancel()
    started = threading.Event()
    canceled_at: list[float] = []

    def give_up() -> None:
        canceled_at.append(time.monotonic())
        cancel.set()

    def soon(position: int) -> None:
        if position >= 2 * PART_BYTES and not started.is_set():
            started.set()
            assert server.unfinished() == ["out/queue/p/canceled"]
            if hangs:
                proxy.black_hole()
            threading.Timer(0.1, give_up).start()

    bucket = at(f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(Canceled):
        bucket.store(watched(tmp_path, soon, size=1 << 30), "canceled", terms(cancel))
    assert elapsed(canceled_at[0]) < 2  # seconds that it waits for an answer
    proxy.heal()
    wait_until(lambda: server.unfinished() == [], "the parts to go")
    assert "out/queue/p/canceled" not in server.objects()


def test_a_connection_that_breaks_in_the_middle_costs_a_part(
    server: S3Server, proxy: Proxy, at: At, tmp_path: Path
) -> None:
    broken = threading.Event()

    def cut(position: int) -> None:
        if position >= 2 * PART_BYTES and not broken.is_set():
            broken.set()
            proxy.cut()

    at(f"http://127.0.0.1:{proxy.port}").store(watched(tmp_path, cut), "broken", terms())
    assert broken.is_set()
    assert server.objects()["out/queue/p/broken"] == LARGE


def test_a_file_that_shrinks_ends_the_upload_of_all_its_parts(server: S3Server, at: At, tmp_path: Path) -> None:
    def shrink(position: int) -> None:
        os.truncate(tmp_path / "large.bin", 1)

    message = refusal(at(server.url), watched(tmp_path, shrink))
    assert "The output file large.bin became shorter while it was uploaded." in message
    wait_until(lambda: server.unfinished() == [], "the parts to go")


def test_a_lost_answer_to_the_last_call_is_not_a_failure(
    server: S3Server, proxy: Proxy, at: At, tmp_path: Path
) -> None:
    proxy.lose_reply(to=b"</CompleteMultipartUpload>")
    at(f"http://127.0.0.1:{proxy.port}").store(made(tmp_path, size=LARGE), "lost", terms())
    assert proxy.lost == 1
    assert server.objects()["out/queue/p/lost"] == LARGE


# URLs that others signed


def signed(server: S3Server, *, key: str = "theirs", **parameters: Any) -> str:
    values = {"Bucket": BUCKET, "Key": key, **parameters}
    return str(server.client.generate_presigned_url("put_object", Params=values, ExpiresIn=100))


def sent(client: Client, path: str, url: str) -> str:
    """The output, or what went wrong."""
    try:
        return Uploader(None, client=client).for_prediction("p", [url]).upload(path)
    except UploadError as error:
        assert "X-Amz" not in str(error)
        return str(error)


def test_a_presigned_put_works_and_says_why_when_it_does_not(
    server: S3Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "out.png")
    made(tmp_path)
    place = f"{server.url}/files/theirs"
    assert sent(client, path, signed(server)) == place
    assert sent(client, path, signed(server, ContentType="image/png", ContentLength=7)) == place
    told = f"The output file out.png could not be uploaded to {place}: "
    no_match = "the signature of its URL does not match: it was "
    other = no_match + "signed for another Content-Type than image/png, or changed (it answered 403"
    changed = no_match + "changed, or signed with another key or for another method (it answered 403"
    tampered = re.sub("Signature=.{6}", "Signature=000000", signed(server))
    for url, why in {
        signed(server, ContentType="text/plain"): other,
        tampered: changed,
        server.client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "theirs"}): changed,
    }.items():
        assert sent(client, path, url).startswith(told + why)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=102)
    with monkeypatch.context() as context:
        context.setattr(botocore.auth, "get_current_datetime", lambda **_: past.replace(tzinfo=None))
        expired = signed(server)
    message = sent(client, path, expired)
    assert message.startswith(told + "its URL has expired (it answered 40"), message
    with Web() as web:  # a server that signs for others, and answers 307
        web.on("*", reply(307, Location=expired))
        uploads = Uploader(web.url, "put", client=client).for_prediction("p")
        with pytest.raises(UploadError, match="its URL has expired") as caught:
            uploads.upload(path)
        assert f"after a redirect to {place}" in str(caught.value)


SIGNED = "/k?X-Amz-Signature=canary&X-Amz-SignedHeaders=host"


@pytest.mark.parametrize(
    ("status", "body", "url", "told"),
    [
        (403, ERROR.format("AccessDenied", "Request has expired"), SIGNED, "its URL has expired (it answered 403 Acc"),
        (
            400,
            ERROR.format("ExpiredToken", "It has expired"),
            SIGNED,
            "the credentials that signed its URL have expired",
        ),
        (403, ERROR.format("AccessDenied", ""), SIGNED, "access was denied (it answered 403 AccessDenied). Whoever"),
        (403, "", "/k?Signature=x&Expires=1", "its URL has expired (it answered 403)"),
        (403, "", "/k?X-Goog-Signature=x&X-Goog-Date=20200101T000000Z&X-Goog-Expires=9", "its URL has expired"),
        (403, "", SIGNED, "it answered 403 Forbidden. Check that the upload URL has not expired"),
        (411, "", SIGNED, "it got no Content-Length (it answered 411)"),
        (413, "", SIGNED, "the file is too large for it (it answered 413)"),
        (404, ERROR.format("NoSuchBucket", ""), SIGNED, "there is no such bucket (it answered 404 NoSuchBucket)"),
        (
            403,
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><Error><Code>&b;</Code></Error>',
            SIGNED,
            "it answ",
        ),
        (403, "<Code>" + "x" * 100_000, "/k", "it answered 403 Forbidden."),
        (403, "<Code>canary!</Code>", "/k", "it answered 403 Forbidden."),
    ],
)
def test_refusals_of_signed_urls_say_which(
    client: Client, tmp_path: Path, status: int, body: str, url: str, told: str
) -> None:
    made(tmp_path)
    with Web() as web:
        web.on("*", reply(status, body.encode()))
        message = sent(client, str(tmp_path / "out.png"), web.url + url)
        assert told in message
        assert "canary" not in message
        assert len(web.seen) == 1


def test_a_file_too_large_for_one_put_names_the_mode_that_takes_it(at: At, tmp_path: Path) -> None:
    message = refusal(at("http://127.0.0.1:1", presigned=True), made(tmp_path, size=(5 << 30) + 1))
    assert "Use --upload-mode s3, which sends large files in parts." in message


# Settings and secrets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_PROFILE", "nobody"),
        ("AWS_ENDPOINT_URL_S3", "canary-secret"),
        ("AWS_ENDPOINT_URL_S3", "http://canary..secret"),
        ("AWS_REGION", "not a region"),
        ("AWS_CA_BUNDLE", "/canary"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    if name == "AWS_REGION":
        monkeypatch.setenv("AWS_DEFAULT_REGION", value)
    with pytest.raises(UsageError, match="s3://files cannot be used with the AWS settings") as caught:
        Uploader.of(Settings(upload_url="s3://files"))
    assert "canary" not in str(caught.value)


def test_the_server_is_where_the_worker_is_told_unless_that_is_denied(
    server: S3Server, at: At, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    told = Settings(
        upload_url="s3://files/all", upload_mode="presigned", addresses="public", upload_key="{name}-{entry}"
    )
    path = str(tmp_path / "told.png")
    made(tmp_path, "told.png")
    uploader = Uploader.of(told)
    uploads = uploader.for_prediction("p", queue="q", entry="7-1")
    assert "X-Amz-Expires=3600" in uploads.upload(path)
    assert "all/told.png-7-1" in server.objects()
    uploader.close()
    denying = Uploader.of(replace(told, deny_addresses=("127.0.0.0/8",)))
    with pytest.raises(UploadError, match=r"host 127\.0\.0\.1 is not to be reached from this worker"):
        denying.for_prediction("p").upload(path)
    denying.close()


def test_a_bucket_of_another_region_is_found(at: At, tmp_path: Path) -> None:
    with Web() as web:
        elsewhere = (
            b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-west-1</Region></Error>"
        )
        web.on("*", reply(400, elsewhere), reply(200, ETag='"x"'))
        at(web.url).store(made(tmp_path), "n", terms())
        assert [seen.headers["Authorization"].split("/")[2] for seen in web.seen] == ["us-east-1", "eu-west-1"]


def test_no_secret_is_ever_logged_or_shown(
    server: S3Server, at: At, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    for presigned in (False, True):
        bucket = at(server.url, presigned=presigned, output="s3")
        bucket.store(made(tmp_path), "n", terms())
        assert SECRET_KEY not in repr(vars(bucket))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-token")
    with Web() as web:
        web.on("*", reply(403, ERROR.format("AccessDenied", "").encode()))
        for presigned in (False, True):
            refusal(at(web.url, presigned=presigned), made(tmp_path, size=LARGE))
    for secret in (SECRET_KEY, "canary", "X-Amz-Signature", "AWS4-HMAC"):
        assert secret not in caplog.text
