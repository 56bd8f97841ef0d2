"""Files in and out: what is uploaded, when its URL appears, and what is left of it afterwards."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request as HTTPRequest
from werkzeug import Response as HTTPResponse

from tests.conftest import FleetFactory
from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.processes import wait_until
from tests.support.producer import processing, succeeded


@pytest.fixture(scope="module")
def uploading(shared_fleet: FleetFactory, make_httpserver: HTTPServer) -> Fleet:
    """A fleet that uploads to the test's HTTP server."""
    return shared_fleet("modes", upload_url=make_httpserver.url_for("/upload"))


@pytest.fixture(scope="module")
def reading(shared_fleet: FleetFactory) -> Fleet:
    """A fleet whose model takes a file."""
    return shared_fleet("reads_file")


@pytest.fixture
def store(httpserver: HTTPServer) -> list[HTTPRequest]:
    """What was PUT, by a server that takes raw bodies and multipart forms as Cog's servers of the 0.4 era do."""
    received: list[HTTPRequest] = []

    def put(request: HTTPRequest) -> HTTPResponse:
        request.get_data()
        received.append(request)
        if "file" in request.files:
            url = f"http://files.example/{request.files['file'].filename}"
            return HTTPResponse(json.dumps({"url": url}), content_type="application/json")
        if request.path.rstrip("/") == "/upload":
            return HTTPResponse("no file", status=400)
        name = request.path.rsplit("/", 1)[-1]
        return HTTPResponse(status=201, headers={"Location": f"http://files.example/{name}"})

    httpserver.expect_request(re.compile("/upload/?.*"), method="PUT").respond_with_handler(put)
    return received


def test_a_file_is_uploaded_before_its_url_appears(
    uploading: Fleet, monitor: Monitor, store: list[HTTPRequest]
) -> None:
    sequence = uploading.producer.sequence(monitor, {"mode": "a_file", "text": "content"})
    assert sequence == [processing(), succeeded("http://files.example/hello.txt")]
    assert len(store) == 1


def test_yielded_files_are_uploaded_in_order(uploading: Fleet, monitor: Monitor, store: list[HTTPRequest]) -> None:
    sequence = uploading.producer.sequence(monitor, {"mode": "yields_files", "text": "f", "count": 3, "seconds": 0.4})
    urls = [f"http://files.example/file{i}.txt" for i in range(3)]
    assert sequence == [processing(), processing(urls[:1]), processing(urls[:2]), processing(urls), succeeded(urls)]
    assert len(store) == 3


@pytest.mark.ours
def test_the_put_carries_the_bytes_their_type_and_the_prediction(uploading: Fleet, store: list[HTTPRequest]) -> None:
    request = uploading.producer.send({"mode": "a_file", "text": "content"}, id="upload-1")
    uploading.producer.wait(request)
    [put] = store
    assert put.path == "/upload/hello.txt"
    assert put.get_data() == b"content"
    assert put.headers["Content-Type"].split(";")[0] == "text/plain"
    assert put.headers["Content-Length"] == "7"
    assert put.headers["X-Prediction-ID"] == "upload-1"


@pytest.mark.ours
def test_files_in_a_model_are_uploaded(uploading: Fleet, store: list[HTTPRequest]) -> None:
    response = uploading.producer.predict({"mode": "model", "text": "content"})
    assert response == succeeded({"text": "content", "file": "http://files.example/model.txt"})


@pytest.mark.ours
def test_equal_names_do_not_overwrite_each_other(uploading: Fleet, store: list[HTTPRequest]) -> None:
    urls = uploading.producer.predict({"mode": "same_names", "count": 3})["output"]
    assert len(set(urls)) == 3
    contents = {f"http://files.example/{put.path.rpartition('/')[2]}": put.get_data() for put in store}
    assert [contents[url] for url in urls] == [b"file 0", b"file 1", b"file 2"]


@pytest.mark.ours
def test_a_refused_upload_fails_the_prediction_and_says_by_whom(uploading: Fleet, httpserver: HTTPServer) -> None:
    httpserver.expect_request(re.compile("/upload.*")).respond_with_data("no", status=403)
    response = uploading.producer.predict({"mode": "a_file"})
    assert response["status"] == "failed" and response["output"] is None
    assert "403" in response["error"] and "hello.txt" in response["error"]
    assert uploading.producer.predict({"mode": "hello"}) == succeeded("hello world")


@pytest.mark.ours
def test_a_request_may_bring_its_own_urls(uploading: Fleet, httpserver: HTTPServer) -> None:
    bodies: dict[str, bytes] = {}

    def put(request: HTTPRequest) -> HTTPResponse:
        bodies[request.full_path] = request.get_data()
        return HTTPResponse(status=200)

    httpserver.expect_request(re.compile("/presigned/.*"), method="PUT").respond_with_handler(put)
    base = httpserver.url_for("/presigned")
    urls = [f"{base}/{i}?signature=secret{i}" for i in range(2)]
    request = uploading.producer.send({"mode": "yields_files", "text": "f", "count": 2}, output_upload_urls=urls)
    response = uploading.producer.wait(request)
    assert response["output"] == [f"{base}/0", f"{base}/1"]
    assert bodies == {f"/presigned/{i}?signature=secret{i}": f"f {i}".encode() for i in range(2)}
    assert "secret" not in uploading.log()


@pytest.mark.ours
def test_an_input_is_downloaded_under_its_name_and_gone_afterwards(reading: Fleet, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/in/some file.txt").respond_with_data("content")
    url = httpserver.url_for("/in/some%20file.txt?token=1")
    response = reading.producer.predict({"file": url})
    assert response["status"] == "succeeded", response
    name, content, path = re.fullmatch(r"(some file\.txt) (content) (/.*)", response["output"]).groups()  # type: ignore[union-attr]
    assert (name, content) == ("some file.txt", "content")
    wait_until(lambda: not Path(path).exists() and not Path(path).parent.exists(), "it to be removed")


@pytest.mark.ours
def test_a_data_uri_is_an_input(reading: Fleet) -> None:
    uri = "data:text/plain;base64," + base64.b64encode(b"content").decode()
    assert reading.producer.predict({"file": uri})["output"].split()[1] == "content"


@pytest.mark.ours
def test_an_input_that_cannot_be_fetched_fails_the_prediction(reading: Fleet, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/gone").respond_with_data("no", status=404)
    response = reading.producer.predict({"file": httpserver.url_for("/gone?token=secret-token")})
    assert response["status"] == "failed"
    assert "404" in response["error"] and "secret-token" not in response["error"]
    assert "secret-token" not in reading.log()


def test_an_input_of_another_scheme_is_refused(reading: Fleet, monitor: Monitor) -> None:
    history = reading.producer.history(monitor, reading.producer.send({"file": "ftp://files.example/a"}))
    assert [snapshot.value["error"].split("\n") for snapshot in history] == [
        [
            "1 validation error for Input",
            "file",
            "  'ftp' is not a valid URL scheme. 'data', 'http', or 'https' is supported. (type=value_error)",
        ]
    ]
