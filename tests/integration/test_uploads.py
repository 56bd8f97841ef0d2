"""Files in and out against servers that are not scripted by the test: real forms, TLS, and large files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from cog_celery.errors import Canceled, InputError, UploadError
from cog_celery.files import inputs
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.outputs import Uploader
from cog_celery.settings import Settings
from tests.conftest import FleetFactory, missing
from tests.support.s3 import S3Server, kinds
from tests.support.web import LOCAL, Handler, Web, elapsed, hang, reply

pytestmark = pytest.mark.ours

ROOT = Path(__file__).parents[2]
LARGE = int(os.environ.get("COG_TEST_LARGE_MIB", "200")) << 20
"""`COG_TEST_LARGE_MIB=2048`: as large as one would not have in every run."""
MAX_GROWTH = 20 << 20


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", port=0) as server:
        yield server


@pytest.fixture(scope="module", params=kinds(), ids=lambda kind: kind.__name__)
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server: S3Server = request.param(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


class OldServer:
    """An upload server as they were: one URL, a form with a file, the file's URL as JSON."""

    def __init__(self, server: HTTPServer) -> None:
        self.files: dict[str, tuple[str | None, bytes]] = {}
        self.url = server.url_for("/upload")
        server.expect_request("/upload", method="PUT").respond_with_handler(self._put)

    def _put(self, request: Request) -> Response:
        file = request.files["file"]
        assert file.filename is not None
        self.files[unquote(file.filename)] = (file.content_type, file.read())
        return Response(json.dumps({"url": f"http://files.example/{len(self.files)}"}), content_type="application/json")


def test_a_server_of_the_old_kind_gets_forms_that_it_can_read(server: HTTPServer, tmp_path: Path) -> None:
    old = OldServer(server)
    names = ["a.png", 'q"uo\r\nte.txt', "é ü.webp", "no-extension"]
    content = b'--boundary\r\n\r\n"\0\xff' * 1000
    uploads = Uploader(old.url, client=Client(LOCAL)).for_prediction("p")
    for name in names:
        (tmp_path / name).write_bytes(content)
    # pytest-httpserver answers 500 to what it does not expect; such a server answers 404.
    server.expect_request("/upload/a.png").respond_with_data(status=404)
    outputs = [uploads.upload(str(tmp_path / name)) for name in names]
    assert outputs == [f"http://files.example/{n + 1}" for n in range(len(names))]
    assert list(old.files) == names
    assert {body for _, body in old.files.values()} == {content}
    assert old.files["a.png"][0] == "image/png"


def test_a_server_that_hands_out_presigned_urls_gets_the_file_at_their_bucket(
    server: HTTPServer, tmp_path: Path
) -> None:
    stored: dict[str, bytes] = {}

    def sign(request: Request) -> Response:
        return Response(status=307, headers={"Location": f"/bucket{request.path}?X-Amz-Signature=abc"})

    def store(request: Request) -> Response:
        assert request.args["X-Amz-Signature"] == "abc"
        assert request.headers["X-Prediction-ID"] == "p"
        stored[request.path] = request.get_data()
        return Response(status=200)

    server.expect_request("/out.txt").respond_with_handler(sign)
    server.expect_request("/bucket/out.txt").respond_with_handler(store)
    (tmp_path / "out.txt").write_bytes(b"content")
    output = Uploader(server.url_for("/"), client=Client(LOCAL)).for_prediction("p").upload(str(tmp_path / "out.txt"))
    assert output == server.url_for("/bucket/out.txt")
    assert stored == {"/bucket/out.txt": b"content"}


def test_what_is_uploaded_can_be_downloaded(tmp_path: Path) -> None:
    with Web() as web:
        stored: dict[str, bytes] = {}

        def serve(handler: Handler) -> None:
            if handler.command == "PUT":
                stored[handler.path] = web.seen[-1].body
                handler.answer(201)
            else:
                handler.answer(200, stored[handler.path])

        web.on("*", serve)
        path = tmp_path / "a b?c#d%41é.bin"
        path.write_bytes(bytes(range(256)) * 100)
        url = Uploader(web.url, client=Client(LOCAL)).for_prediction("p").upload(str(path))
        (tmp_path / "in").mkdir()
        [copy] = inputs.fetch([url], tmp_path / "in", Client(LOCAL))
        assert copy.name == path.name
        assert copy.read_bytes() == path.read_bytes()


MEASURED = """
import re, sys
from pathlib import Path
from cog_celery.files import inputs
from cog_celery.files.http_client import Client
from cog_celery.files.outputs import Uploader
from tests.support.web import LOCAL

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

what, url, path = sys.argv[1:]
{small}
before = peak()
{large}
print(peak() - before)
"""

UPLOAD = "Uploader(url, what, client=Client(LOCAL)).for_prediction('p').upload(path{suffix})"
DOWNLOAD = "inputs.fetch([url + {name!r}], Path(path) / {folder!r}, Client(LOCAL))"


def growth(script: str, *arguments: str) -> int:
    """How far the peak of a process's memory rises with a large file, after a small one."""
    if not Path("/proc/self/status").exists():
        missing("/proc")
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.parametrize("mode", ["put", "multipart"])
def test_a_large_upload_needs_no_memory(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "large.bin"
    path.with_suffix(".bin.small").write_bytes(b"x")
    with path.open("wb") as file:
        file.truncate(LARGE)
    with Web() as web:
        web.on("/up", reply(200, b'{"url": "http://h/x"}'))
        web.on("/up/large.bin", reply(307, Location="/stored"))
        web.on("*", reply(200))
        script = MEASURED.format(small=UPLOAD.format(suffix=" + '.small'"), large=UPLOAD.format(suffix=""))
        assert growth(script, mode, web.url + "/up", str(path)) < MAX_GROWTH
        assert web.seen[-1].length >= LARGE
        assert web.seen[-1].headers["Transfer-Encoding"] is None
        if mode == "put":
            assert web.seen[-1].sha256 == hashlib.sha256(bytes(LARGE)).hexdigest()


IN_A_BUCKET = """
import re, sys, time
from pathlib import Path
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.http_uploads import Terms
from cog_celery.files.output_files import open_output
from cog_celery.files.s3 import Bucket
from tests.support.web import LOCAL

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

bucket = Bucket("s3://files", client=Client(LOCAL, read_timeout=60), presigned=sys.argv[1] == "presigned", output="s3")

def store(path):
    bucket.store(open_output(path), "n", Terms({}, Cancel(), time.monotonic() + 300, "q", "i", "1-1"))

store(sys.argv[2] + ".small")
before = peak()
store(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.parametrize("mode", ["s3", "presigned"])
def test_a_large_upload_to_a_bucket_needs_no_memory(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = tmp_path / "large.bin"
    path.with_suffix(".bin.small").write_bytes(b"x")
    with path.open("wb") as file:
        file.truncate(LARGE)
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    assert growth(IN_A_BUCKET, mode, str(path)) < MAX_GROWTH
    assert s3.objects()["q/i/n"] == LARGE


@pytest.mark.parametrize("mode", ["s3", "presigned"])
def test_a_fleet_uploads_to_a_bucket_whose_keys_its_model_does_not_know(
    fleet: FleetFactory, s3: S3Server, mode: str
) -> None:
    options = {"upload_url": "s3://files/all", "upload_mode": mode, "output_url": "public", "log_level": "debug"}
    own = fleet("gives_out", start=False, lease=1, **options)
    own.start_bridge()
    own.start_worker(env=s3.env)
    own.wait_ready()
    environment = own.producer.predict({"how": "environment"})["output"]
    assert [name for name in environment if name.startswith("AWS_")] == []
    request = own.producer.send({"how": "yields own_link"})
    snapshot = own.producer.wait(request)
    key = f"all/{own.queue}/{request.id}/out.txt"
    assert snapshot["output"] == [f"{s3.url}/files/{key}"]
    found = s3.client.get_object(Bucket="files", Key=key)
    assert (found["Body"].read(), found["ContentType"]) == (b"content", "text/plain")
    assert not [word for word in (s3.env["AWS_SECRET_ACCESS_KEY"], "Signature") if word in own.log()]


def test_a_large_download_needs_no_memory(tmp_path: Path) -> None:
    for folder in ("small", "large"):
        (tmp_path / folder).mkdir()

    def large(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(LARGE))
        handler.end_headers()
        block = bytes(1 << 20)
        for _ in range(LARGE >> 20):
            handler.wfile.write(block)

    with Web() as web:
        web.on("/small", reply(200, b"x"))
        web.on("/large", large)
        script = MEASURED.format(
            small=DOWNLOAD.format(name="/small", folder="small"), large=DOWNLOAD.format(name="/large", folder="large")
        )
        assert growth(script, "", web.url, str(tmp_path)) < MAX_GROWTH
        assert (tmp_path / "large" / "0" / "large").stat().st_size == LARGE


def test_ids_of_predictions_stay_apart_in_threads_that_share_an_uploader(tmp_path: Path) -> None:
    with Web() as web:
        web.on("*", reply(200))
        uploader = Uploader(web.url, client=Client(LOCAL))
        path = tmp_path / "out.bin"
        path.write_bytes(b"x" * 100_000)

        def upload(number: int) -> None:
            uploads = uploader.for_prediction(f"p{number}")
            for _ in range(10):
                uploads.upload(str(path))

        threads = [threading.Thread(target=upload, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sent = sorted((seen.headers["X-Prediction-ID"], seen.target) for seen in web.seen)
        names = ["/out.bin", *(f"/out-{n}.bin" for n in range(1, 10))]
        assert sent == sorted((f"p{number}", name) for number in range(8) for name in names)
        assert {seen.length for seen in web.seen} == {100_000}


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    if shutil.which("openssl") is None:
        missing("openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        [*command.split(), "-keyout", "key.pem", "-out", "certificate.pem"], cwd=folder, check=True, capture_output=True
    )
    both = folder / "both.pem"
    both.write_text((folder / "certificate.pem").read_text() + (folder / "key.pem").read_text())
    return both


@pytest.fixture
def secure(certificate: Path) -> Iterator[Web]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Web(context) as web:
        yield web


def test_a_certificate_that_nobody_trusts_is_refused(secure: Web, tmp_path: Path) -> None:
    secure.on("*", reply(200))
    with pytest.raises(InputError, match=r"its certificate is not trusted \(self.signed certificate\)"):
        inputs.fetch([secure.url + "/a"], tmp_path, Client(LOCAL))
    path = tmp_path / "out.txt"
    path.write_bytes(b"secret")
    with pytest.raises(UploadError, match="its certificate is not trusted"):
        Uploader(secure.url, client=Client(LOCAL)).for_prediction("p").upload(str(path))
    assert secure.seen == []


TRUSTING = """
import sys
from pathlib import Path
from cog_celery.files import inputs
from cog_celery.files.http_client import Client
from cog_celery.files.outputs import Uploader
from tests.support.web import LOCAL

url, folder = sys.argv[1:]
client = Client(LOCAL)
[path] = inputs.fetch([url + "/a.txt"], Path(folder), client)
print(path.read_text(), Uploader(url, client=client).for_prediction("p").upload(str(path)))
"""


def test_the_usual_variable_names_certificates_to_trust(
    secure: Web, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.on("*", reply(200, b"content"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    run = subprocess.run(
        [sys.executable, "-c", TRUSTING, secure.url, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.split() == ["content", f"{secure.url}/a.txt"], run.stderr
    assert [seen.body for seen in secure.seen] == [b"", b"content"]


def test_the_variable_of_aws_names_certificates_to_trust_for_a_bucket(
    secure: Web, certificate: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.on("*", reply(200, ETag='"x"'))
    path = tmp_path / "out.txt"
    path.write_bytes(b"content")
    for name, value in {**s3.env, "AWS_ENDPOINT_URL_S3": secure.url}.items():
        monkeypatch.setenv(name, value)
    settings = Settings(upload_url="s3://files", output_url="s3")
    with pytest.raises(UploadError, match="its certificate is not trusted"):
        Uploader.of(settings).for_prediction("p").upload(str(path))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    assert Uploader.of(settings).for_prediction("p").upload(str(path)) == "s3://files/%/p/out.txt"
    assert [seen.body for seen in secure.seen] == [b"content"]


CANCELING = """
import sys, threading, time
from pathlib import Path
from cog_celery import errors
from cog_celery.files import inputs
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from tests.support.web import LOCAL

cancel = Cancel()
at = []
def set_soon():
    sys.stdin.readline()
    at.append(time.monotonic())
    cancel.set()
threading.Thread(target=set_soon).start()
try:
    inputs.fetch([sys.argv[1]], Path(sys.argv[2]), Client(LOCAL), cancel=cancel)
except errors.Canceled:
    print(time.monotonic() - at[0])
"""


def test_cancel_ends_a_hanging_exchange_over_tls(
    secure: Web, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.on("/a", hang)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with subprocess.Popen(
        [sys.executable, "-c", CANCELING, secure.url + "/a", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while not secure.seen and time.monotonic() < deadline:
            time.sleep(0.01)
        out, _ = process.communicate("now\n", timeout=30)
    assert float(out) < 0.5


def test_http_spoken_to_a_tls_port_is_an_error(secure: Web, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        inputs.fetch([f"http://{secure.netloc}/a"], tmp_path, client=Client(LOCAL, first_delay=0.01))


def test_cancel_reaches_downloads_that_wait_for_a_thread(tmp_path: Path) -> None:
    with Web() as web:
        web.on("*", hang)
        cancel = Cancel()
        timer = threading.Timer(0.3, cancel.set)
        timer.start()
        start = time.monotonic()
        with pytest.raises(Canceled):
            inputs.fetch([f"{web.url}/{n}" for n in range(20)], tmp_path, Client(LOCAL), cancel=cancel)
        assert elapsed(start) < 1.5
        assert len(web.seen) <= inputs.PARALLEL
        timer.join()
