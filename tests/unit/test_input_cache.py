"""The cache of input files against a server whose requests and bytes are counted."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest

from cog_celery.errors import Canceled, InputError, UploadError, UsageError
from cog_celery.files import downloads, input_cache, inputs, urls
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.input_cache import InputCache, key_of
from cog_celery.settings import Settings
from tests.support.processes import wait_until
from tests.support.web import Handler, Web, raw, reply

ROOT = Path(__file__).parents[2]
SIZE = 300_000
CONTENT = bytes(range(250)) * (SIZE // 250)
OTHER = CONTENT[::-1]
SECRET = "hunter2secret"


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    return InputCache(tmp_path / "cache", 10_000_000)


class Folders:
    """A folder for each prediction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._lock = threading.Lock()

    def new(self) -> Path:
        with self._lock:
            self._count += 1
            folder = self._path / f"prediction {self._count}"
            folder.mkdir()
            return folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


Fetch = Callable[..., Path]


@pytest.fixture
def fetch(client: Client, cache: InputCache, folders: Folders) -> Fetch:
    def one(url: str, **options: object) -> Path:
        options = {"cache": cache, **options}
        [path] = inputs.fetch([url], folders.new(), client, **options)  # type: ignore[arg-type]
        return path

    return one


class File:
    """A file as object stores serve them, with a strong ETag, and 304 for who has it. Counts what it sent."""

    def __init__(self, content: bytes = CONTENT, signature: str = "", **headers: str) -> None:
        self.content = content
        self.signature = signature
        self.headers = headers
        self.whole = 0
        self.unchanged = 0
        self._lock = threading.Lock()

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'

    def __call__(self, handler: Handler) -> None:
        if self.signature and self.signature not in handler.path:
            handler.answer(403, b"no")
        elif handler.headers["If-None-Match"] == self.etag:
            with self._lock:
                self.unchanged += 1
            handler.raw(f"HTTP/1.1 304 Not Modified\r\nETag: {self.etag}\r\n\r\n".encode())
        else:
            with self._lock:
                self.whole += 1
            handler.answer(200, self.content, ETag=self.etag, **self.headers)


def kept(cache: InputCache) -> list[Path]:
    return [file for file in cache.folder.iterdir() if not file.name.startswith(".")]


def total(cache: InputCache) -> int:
    return int((cache.folder / ".cog-celery-size").read_text())


def test_a_file_that_twenty_predictions_name_is_sent_once(web: Web, cache: InputCache, fetch: Fetch) -> None:
    file = File()
    url = web.on("/a/photo.png", file)
    for _ in range(20):
        path = fetch(url)
        assert (path.name, path.read_bytes()) == ("photo.png", CONTENT)
    assert (file.whole, file.unchanged) == (1, 19)
    [entry] = kept(cache)
    assert entry.stat().st_mode & 0o777 == 0o400
    assert total(cache) == entry.stat().st_size < SIZE + 1000


def test_it_is_sent_once_when_all_ask_at_the_same_time_in_several_processes(
    web: Web, cache: InputCache, tmp_path: Path
) -> None:
    file = File()
    began = threading.Barrier(2)

    def slow(handler: Handler) -> None:
        if not file.whole:
            began.wait(20)  # while the others come and wait
            time.sleep(0.3)
        file(handler)

    url = web.on("/a.bin", slow)
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cog_celery.files import inputs
from cog_celery.files.http_client import Client
from cog_celery.files.input_cache import InputCache
from tests.support.web import LOCAL
url, cache, folder = sys.argv[1], InputCache(Path(sys.argv[2]), 10_000_000), Path(sys.argv[3])
client = Client(LOCAL)
def one(number):
    (folder / str(number)).mkdir(parents=True)
    [path] = inputs.fetch([url, url], folder / str(number), client, cache=cache)[:1]
    return len(path.read_bytes())
with ThreadPoolExecutor(5) as threads:
    print(sum(threads.map(one, range(5))))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, url, str(cache.folder), str(tmp_path / f"process {number}")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    began.wait(20)
    assert [process.communicate(timeout=30)[0].strip() for process in processes] == [str(5 * SIZE)] * 2
    assert (file.whole, file.unchanged) == (1, 19)
    assert [entry.name for entry in kept(cache)] == [key_of(urls.parse(url))]


def test_who_may_not_read_the_url_gets_nothing(web: Web, cache: InputCache, fetch: Fetch) -> None:
    file = File(signature=SECRET)
    url = web.on("/a.bin", file)
    signed = "?X-Amz-Credential=me&X-Amz-Signature="
    fetch(f"{url}{signed}{SECRET}")
    with pytest.raises(InputError, match="403"):
        fetch(f"{url}{signed}wrong")
    with pytest.raises(InputError, match="403"):
        fetch(url)
    assert fetch(f"{url}{signed}{SECRET}&X-Amz-Date=later").read_bytes() == CONTENT
    assert (file.whole, file.unchanged) == (1, 1)
    assert not any(SECRET in str(file) or SECRET.encode() in file.read_bytes() for file in cache.folder.iterdir())


def test_what_has_changed_is_fetched_again_and_replaces_the_old(web: Web, cache: InputCache, fetch: Fetch) -> None:
    file = File()
    url = web.on("/a.bin", file)
    first = fetch(url)
    file.content = OTHER
    assert fetch(url).read_bytes() == fetch(url).read_bytes() == OTHER
    assert (file.whole, file.unchanged) == (2, 1)
    assert first.read_bytes() == CONTENT
    assert total(cache) == sum(entry.stat().st_size for entry in kept(cache)) < SIZE + 1000


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": 'W/"weak"'},
        {"ETag": "unquoted"},
        {"ETag": '"one", "two"'},
        {"ETag": '""'},
        {"Last_Modified": "Mon, 02 Jan 2006 15:04:05 GMT"},
        {"ETag": '"a"', "Cache_Control": "private, No-Store"},
        {"ETag": '"a"', "Vary": "Accept, *"},
        {"ETag": '"a"', "Set_Cookie": "a=b"},
    ],
)
def test_what_cannot_be_confirmed_or_may_not_be_kept_is_not(
    web: Web, cache: InputCache, fetch: Fetch, headers: dict[str, str]
) -> None:
    url = web.on("/a.bin", reply(200, CONTENT, **headers))
    for _ in range(2):
        assert fetch(url).read_bytes() == CONTENT
    assert kept(cache) == []
    assert [seen.headers["If-None-Match"] for seen in web.seen] == [None, None]


def test_a_small_file_and_one_larger_than_the_cache_are_not_kept(
    web: Web, fetch: Fetch, folders: Folders, tmp_path: Path
) -> None:
    cache = InputCache(tmp_path / "small", SIZE - 1)
    chunked = b'HTTP/1.1 200 OK\r\nETag: "c"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n'
    web.on("/small", reply(200, CONTENT[: input_cache.LEAST - 1], ETag='"a"'))
    web.on("/large", reply(200, CONTENT, ETag='"a"'))
    web.on("/small-chunked", raw(chunked % (5, b"hello")))
    web.on("/large-chunked", raw(chunked % (SIZE, CONTENT)))
    sizes = [fetch(web.url + path, cache=cache).stat().st_size for path in web.replies]
    assert sizes == [input_cache.LEAST - 1, SIZE, 5, SIZE]
    assert kept(cache) == []
    assert total(cache) == 0


def test_a_file_without_a_length_is_kept(web: Web, cache: InputCache, fetch: Fetch) -> None:
    answer = b'HTTP/1.1 200 OK\r\nETag: "c"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n'
    url = web.on("/a", raw(answer % (SIZE, CONTENT)), raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"))
    assert fetch(url).read_bytes() == fetch(url).read_bytes() == CONTENT
    assert web.seen[1].headers["If-None-Match"] == '"c"'
    assert total(cache) == sum(entry.stat().st_size for entry in kept(cache)) < SIZE + 1000


def test_a_body_that_ends_with_its_connection_is_not_kept(web: Web, cache: InputCache, fetch: Fetch) -> None:
    url = web.on("/a", raw(b'HTTP/1.0 200 OK\r\nETag: "c"\r\n\r\n' + CONTENT))
    assert fetch(url).read_bytes() == CONTENT
    assert kept(cache) == []


def test_a_prediction_can_do_what_it_likes_with_its_copy(web: Web, cache: InputCache, fetch: Fetch) -> None:
    url = web.on("/a.bin", File())
    for _ in range(2):
        path = fetch(url)
        assert path.stat().st_nlink == 1  # or it could not be given out as an output
        with path.open("r+b") as file:
            file.write(b"scribbled over")
        path.rename(path.with_name("moved"))
    assert fetch(url).read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["written to", "cut", "emptied", "from before a crash of the machine"])
def test_an_entry_that_is_not_as_it_was_kept_is_fetched_again(
    web: Web,
    cache: InputCache,
    fetch: Fetch,
    how: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = File()
    url = web.on("/a.bin", file)
    fetch(url)
    [entry] = kept(cache)
    entry.chmod(0o600)
    if how == "written to":
        with entry.open("r+b") as opened:
            opened.write(b"poison")
    elif how == "cut":
        os.truncate(entry, 1000)
    elif how == "emptied":
        os.truncate(entry, 0)
    else:
        monkeypatch.setattr(input_cache, "_boot", lambda: "another")
    assert fetch(url).read_bytes() == CONTENT
    assert file.whole == 2
    assert "is not as it was kept" in caplog.text
    assert fetch(url).read_bytes() == CONTENT
    assert (file.whole, len(kept(cache))) == (2, 1)


def test_redirects_are_followed_every_time_and_an_etag_holds_for_its_own_url_only(
    web: Web, cache: InputCache, fetch: Fetch
) -> None:
    first = File()
    web.on("/first", first)
    # Another file with the same ETag, as servers that count versions have.
    web.on(
        "/second",
        lambda handler: reply(304 if handler.headers["If-None-Match"] else 200, OTHER, ETag=first.etag)(handler),
    )
    url = web.on("/a", *[reply(302, Location="/first")] * 2, reply(302, Location="/second"))
    assert fetch(url).read_bytes() == fetch(url).read_bytes() == CONTENT
    assert (first.whole, first.unchanged) == (1, 1)
    assert fetch(url).read_bytes() == OTHER
    web.on("/a", reply(403))
    with pytest.raises(InputError, match="403"):
        fetch(url)


def test_a_304_that_was_not_asked_for_or_names_another_file_is_not_believed(
    web: Web, cache: InputCache, fetch: Fetch
) -> None:
    url = web.on("/a", raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"))
    with pytest.raises(InputError, match="304"):
        fetch(url)
    web.on("/a", File())
    fetch(url)
    web.on("/a", raw(b'HTTP/1.1 304 Not Modified\r\nETag: "other"\r\n\r\n'), reply(200, OTHER))
    assert fetch(url).read_bytes() == OTHER
    assert kept(cache) == []


def test_the_limit_of_a_worker_holds_for_what_another_one_kept(web: Web, fetch: Fetch) -> None:
    url = web.on("/a", File())
    fetch(url)
    with pytest.raises(InputError, match=f"larger than {SIZE - 1} bytes"):
        fetch(url, max_bytes=SIZE - 1)


def test_what_was_used_least_recently_goes_first(web: Web, fetch: Fetch, tmp_path: Path) -> None:
    cache = InputCache(tmp_path / "three", 3 * SIZE + 100_000)
    files = {name: File() for name in "abcd"}
    for name, file in files.items():
        web.on(f"/{name}", file)
    for name in "abcabd":  # c was used least recently when d comes
        fetch(f"{web.url}/{name}", cache=cache)
    for name in "abdc":
        fetch(f"{web.url}/{name}", cache=cache)
    assert {name: file.whole for name, file in files.items()} == {"a": 1, "b": 1, "c": 2, "d": 1}
    assert total(cache) == sum(entry.stat().st_size for entry in kept(cache)) <= cache.size


def test_files_that_are_not_ours_are_left_alone(web: Web, fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "sub").mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "letter.txt").write_text("x" * SIZE)
    cache = InputCache(folder, SIZE + 100_000)
    for name in "abc":
        fetch(web.on(f"/{name}", File()), cache=cache)
    assert len(list(folder.iterdir())) == 4
    assert (folder / "letter.txt").stat().st_size == SIZE


def test_a_length_that_is_only_claimed_removes_nothing(web: Web, fetch: Fetch, tmp_path: Path, client: Client) -> None:
    cache = InputCache(tmp_path / "one", 4 * SIZE)
    file = File()
    url = web.on("/a", file)
    fetch(url, cache=cache)
    web.on("/claims", raw(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: %d\r\n\r\nx' % (3 * SIZE)))
    with pytest.raises(InputError, match="broke off"):
        fetch(web.url + "/claims", cache=cache)
    fetch(url, cache=cache)
    assert (file.whole, file.unchanged) == (1, 1)
    assert len(kept(cache)) == 1


def test_a_process_that_is_killed_leaves_nothing_for_long(
    web: Web, cache: InputCache, fetch: Fetch, tmp_path: Path
) -> None:
    script = """
import sys
from pathlib import Path
from cog_celery.files import downloads, inputs
from cog_celery.files.http_client import Client
from cog_celery.files.input_cache import InputCache
from tests.support.web import LOCAL
downloads.BLOCK = 100_000
inputs.fetch(sys.argv[1:2], Path(sys.argv[2]), Client(LOCAL), cache=InputCache(Path(sys.argv[3]), 10_000_000))
"""

    def killed(name: str) -> None:
        answer = b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: %d\r\n\r\n%b' % (SIZE, CONTENT[:200_000])

        def act(handler: Handler) -> None:
            handler.wfile.write(answer)
            handler.wait_for_the_end()

        url = web.on(f"/{name}", act)
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", script, url, str(tmp_path / name), str(cache.folder)]
        process = subprocess.Popen(command, cwd=ROOT)
        part = cache.folder / f"{key_of(urls.parse(url))}.part"
        wait_until(lambda: part.exists() and part.stat().st_size, "the beginning of the file")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert part.stat().st_size

    killed("asked-for-again")
    killed("forgotten")
    assert total(cache) > SIZE
    file = File()
    assert fetch(web.on("/asked-for-again", file)).read_bytes() == CONTENT
    assert file.whole == 1
    cache.free(0, tmp_path)
    [entry] = kept(cache)
    assert total(cache) == entry.stat().st_size < SIZE + 1000


def test_who_waits_can_be_canceled(web: Web, cache: InputCache, client: Client, folders: Folders) -> None:
    url = web.on("/a", File())
    part = cache.claim(key_of(urls.parse(url)), Cancel())
    assert part is not None
    cancel = Cancel()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    with pytest.raises(Canceled):
        inputs.fetch([url], folders.new(), client, cancel=cancel, cache=cache)
    part.close()
    timer.join()
    assert not web.seen and not kept(cache)


def test_who_waits_for_a_download_that_stands_still_fetches_it_on_their_own(
    web: Web, cache: InputCache, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_cache, "PATIENCE", 0.05)
    file = File()
    url = web.on("/a", file)
    part = cache.claim(key_of(urls.parse(url)), Cancel())
    assert part is not None
    assert fetch(url).read_bytes() == CONTENT
    part.close()
    assert (file.whole, kept(cache)) == (1, [])


def test_a_download_that_breaks_off_goes_on_in_the_cache(web: Web, cache: InputCache, fetch: Fetch) -> None:
    etag, size = b'ETag: "a"\r\n', 800_000
    content = CONTENT * 3
    broken = raw(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (etag, size, content[:600_000]))

    def rest(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        part = content[start:size]
        handler.answer(206, part, Content_Range=f"bytes {start}-{size - 1}/{size}", ETag='"a"')

    url = web.on("/a", broken, rest, raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"))
    assert fetch(url).read_bytes() == fetch(url).read_bytes() == content[:size]
    assert len(web.seen) == 3


class Full:
    """os.pwrite, copy_file_range of a disk that is full: for the cache, for the predictions, or both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after = 10**9
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, descriptor: int, data: bytes, position: int) -> int:
        if len(data) > 1000 and position + len(data) > self.after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(descriptor, data, position)


def test_on_a_full_disk_the_prediction_goes_on_without_the_cache(
    web: Web, cache: InputCache, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(web.on("/old", File()))
    monkeypatch.setattr(downloads, "BLOCK", 50_000)
    full = Full(monkeypatch)
    full.after = 100_000
    assert fetch(web.on("/a", File())).read_bytes() == CONTENT
    assert kept(cache) == []  # the old one went to make room
    assert total(cache) == 0


def test_without_room_for_two_files_the_prediction_has_the_one(
    web: Web, cache: InputCache, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    path = fetch(web.on("/a", File()))
    assert path.read_bytes() == CONTENT
    assert kept(cache) == [] and total(cache) == 0


def test_a_file_that_is_not_kept_takes_room_from_the_cache(
    web: Web, cache: InputCache, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(web.on("/old", File()))
    write = downloads.write

    def full(file: FileIO, data: bytes) -> None:
        if kept(cache):
            file.write(data[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    monkeypatch.setattr(downloads, "write", full)
    assert fetch(web.on("/a", reply(200, CONTENT))).read_bytes() == CONTENT
    assert kept(cache) == [] and total(cache) == 0


def test_between_file_systems_files_are_copied(web: Web, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(*arguments: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", another)
    url = web.on("/a", File())
    assert fetch(url).read_bytes() == fetch(url).read_bytes() == CONTENT


def test_a_folder_that_is_gone_is_logged_and_done_without(
    web: Web, cache: InputCache, fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    (cache.folder / ".cog-celery-size").unlink()
    cache.folder.rmdir()
    assert fetch(web.on("/a", File())).read_bytes() == CONTENT
    assert "the input cache could not be written" in caplog.text


def test_the_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    settings = Settings(input_cache=str(tmp_path / "a" / "b"), input_cache_size=5)
    cache = InputCache.of(settings)
    assert cache is not None and cache.size == 5
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert InputCache.of(Settings()) is None


@pytest.mark.parametrize("kind", ["file", "link", "writable", "foreign"])
def test_a_folder_that_others_can_change_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    if kind == "file":
        folder.touch()
    elif kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.mkdir(0o700)
        if kind == "writable":
            folder.chmod(0o770)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match=f"the input cache {folder} "):
        InputCache(folder, 1000)


def test_nothing_in_the_folder_is_an_output(cache: InputCache, tmp_path: Path) -> None:
    (cache.folder / "entry").touch()
    (tmp_path / "link").symlink_to(cache.folder)
    for path in (cache.folder / "entry", tmp_path / "link" / "entry", cache.folder / "x" / ".." / "entry"):
        with pytest.raises(UploadError, match="cache of input files"):
            cache.refuse(str(path))
    cache.refuse(str(tmp_path / "other"))
    cache.refuse("\0")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://h/a?b=1", "http://h/a?b=2", False),
        ("http://h/a", "https://h/a", False),
        ("http://h/a", "http://h:81/a", False),
        ("http://h:80/a#x", "http://H/a", True),
        ("http://u:p@h/a", "http://h/a", False),
        ("http://u:p@h/a", "http://u:q@h/a", False),
        ("http://h/a?X-Amz-Credential=1&X-Amz-Signature=1&X-Amz-Date=1", "http://h/a", True),
        ("http://h/a?versionId=1&X-Amz-Credential=1&X-Amz-Signature=1", "http://h/a?versionId=1", True),
        ("http://h/a?x-goog-credential=1&x-goog-signature=1&X-Goog-Expires=9", "http://h/a", True),
        ("http://h/a?AWSAccessKeyId=1&Signature=1&Expires=1", "http://h/a", True),
        ("http://h/a?Signature=1", "http://h/a", False),
        ("http://h/a?Expires=1", "http://h/a", False),
        ("http://h/a?sv=1&sr=b&sig=1&se=2", "http://h/a", True),
        ("http://h/a?sig=1", "http://h/a?sig=2", False),
        ("http://h/a?snapshot=1&sv=1&sig=1", "http://h/a?snapshot=2&sv=1&sig=1", False),
        ("http://h/a?Key-Pair-Id=1&Signature=1&Policy=1&size=2", "http://h/a?size=2", True),
    ],
)
def test_a_key_is_all_of_a_url_but_its_signature(one: str, other: str, same: bool) -> None:
    assert (key_of(urls.parse(one)) == key_of(urls.parse(other))) is same
