"""`cog-celery dead` as a person uses it, on letters that the queue's own step has buried."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result

from cog_celery.cli import main as cli
from cog_celery.delivery.dead import DeadLetters
from cog_celery.delivery.link import Link
from cog_celery.delivery.stream import Delivery, Entry, Queue
from cog_celery.delivery.whereabouts import find
from cog_celery.errors import ServerError
from tests.support.fleet import Fleet
from tests.support.servers import RedisServer, as_user

pytestmark = pytest.mark.ours

ROOT = Path(__file__).parents[2]
OWNER = "bridge~00000000"
Fields = list[tuple[bytes, bytes]]


class Buried:
    """A queue and its letters, with a client whose answers are what the server sent."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.queue = Queue(f"q-{uuid.uuid4().hex[:12]}")
        self.link = Link(server.url, "test")
        self.queue.create_group(self.link)
        self.client = redis.Redis.from_url(server.url, protocol=2)
        self.letters = DeadLetters(self.client, self.queue.name)

    def bury(self, fields: Fields | bytes, reason: str = "it was lost", *, lane: bool = False) -> str:
        """Add a request and have it buried as a bridge does; its letter's id."""
        pairs = [(b"value", fields)] if isinstance(fields, bytes) else fields
        stream = self.queue.high if lane else self.queue.name
        entry = self.link.call("XADD", stream, "*", *(part for pair in pairs for part in pair)).decode()
        self.link.call("XREADGROUP", "GROUP", self.queue.name, OWNER, "STREAMS", stream, ">")
        delivery = Delivery(Entry(stream, entry), 1, None)
        assert self.queue.bury(self.link, delivery, OWNER, None, b"", reason) is True
        return self.ids()[-1]

    def ids(self) -> list[str]:
        return [id.decode() for id, _ in self.link.call("XRANGE", self.queue.dead, "-", "+")]

    def requests(self) -> list[tuple[str, list[bytes]]]:
        """What is in the stream: entries, and their fields in order."""
        return [(id.decode(), fields) for id, fields in self.link.call("XRANGE", self.queue.name, "-", "+")]

    def close(self) -> None:
        self.link.close()
        self.client.close()


@pytest.fixture
def buried(redis_server: RedisServer) -> Iterator[Buried]:
    buried = Buried(redis_server)
    yield buried
    buried.close()


Dead = Callable[..., Result]


@pytest.fixture
def dead(buried: Buried) -> Dead:
    """Run `cog-celery dead …` on the queue, without a terminal."""

    def run(*arguments: str, queue: str | None = None, url: str | None = None) -> Result:
        role = "monitor" if arguments[:1] in (("list",), ("show",)) else "admin"
        env = {"COG_CELERY_QUEUE": queue or buried.queue.name, "REDIS_URL": as_user(role, url or buried.server.url)}
        return CliRunner().invoke(cli.cli, ["dead", *arguments], env=env)

    return run


# Putting back


@pytest.mark.every_server
@pytest.mark.parametrize(
    "fields",
    [
        [(b"value", b'{"response_queue":"r"}')],
        [(b"value", b"\xff\x00 no JSON \r\n")],
        [(b"reason", b"mine"), (b"entry", b"1-1"), (b"attempts", b"9"), (b"owner", b"me"), (b"value", b"{}")],
        [(b"value", b"one"), (b"value", b"two"), (b"", b""), (b"\xff", b"\x00"), (b"value", b"three")],
        [(b"value", b"x" * (1 << 20))],
        [(b"field %d" % number, b"%d" % number) for number in range(500)],
    ],
    ids=["usual", "binary", "named like ours", "twice and empty", "large", "many"],
)
def test_a_request_goes_back_byte_for_byte_as_a_new_entry(buried: Buried, dead: Dead, fields: Fields) -> None:
    letter = buried.bury(fields)
    assert not buried.requests()
    result = dead("retry", letter)
    assert (result.exit_code, result.stderr) == (0, "")
    [(entry, flat)] = buried.requests()
    assert result.stdout == f"{entry}\n"
    assert flat == [part for pair in fields for part in pair]
    assert buried.ids() == []


def test_an_entry_that_was_cut_when_it_was_buried_goes_back_as_it_was_kept(buried: Buried) -> None:
    letter = buried.bury([(b"%d" % number, b"") for number in range(3000)])
    assert buried.letters.retry(letter)
    [(_, flat)] = buried.requests()
    assert flat[::2] == [b"%d" % number for number in range(500)]


def test_no_letter_is_put_back_twice_however_many_try_at_once(buried: Buried) -> None:
    letters = [buried.bury(b"%d" % number) for number in range(40)]
    barrier = threading.Barrier(4)
    entries: list[str | None] = []

    def retry() -> None:
        with redis.Redis.from_url(buried.server.url, protocol=2) as client:
            mine = DeadLetters(client, buried.queue.name)
            barrier.wait()
            entries.extend(mine.retry(letter) for letter in letters)

    threads = [threading.Thread(target=retry) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([entry for entry in entries if entry is not None]) == len(letters)
    assert sorted(flat[1] for _, flat in buried.requests()) == sorted(b"%d" % number for number in range(40))


def test_who_may_not_remove_a_letter_does_not_put_its_request_back_either(buried: Buried) -> None:
    letter, name = buried.bury(b"{}"), f"u-{uuid.uuid4().hex}"
    buried.client.execute_command("ACL", "SETUSER", name, "on", ">pw", "~*", "&*", "+@all", "-xdel")
    url = buried.server.url.replace("redis://", f"redis://{name}:pw@")
    try:
        with redis.Redis.from_url(url, protocol=2) as client, pytest.raises(redis.ResponseError):
            DeadLetters(client, buried.queue.name).retry(letter)
    finally:
        buried.client.execute_command("ACL", "DELUSER", name)
    assert not buried.requests() and buried.ids() == [letter]


def test_a_server_that_has_lost_its_scripts_is_no_matter(buried: Buried) -> None:
    letter = buried.bury(b"{}")
    buried.client.script_flush()
    assert buried.letters.retry(letter)


def test_what_something_else_wrote_there_is_shown_and_dropped_but_not_put_back(buried: Buried, dead: Dead) -> None:
    good = buried.bury(b"{}")
    for fields in ({"value": "x"}, {"reason": "r", "entry": "1-0", "attempts": "1", "owner": "o"}):
        buried.client.xadd(buried.queue.dead, fields)  # type: ignore[arg-type]  # its stubs want a mutable union
    with pytest.raises(ServerError, match="something else wrote it"):
        buried.letters.retry(buried.ids()[1])
    assert dead("show", buried.ids()[1], "--output", "json").exit_code == 0
    result = dead("retry", "--all")
    assert result.exit_code == 1
    assert result.stderr.count("something else wrote it") == 2
    assert "1 dead letter put back" in result.stderr
    assert len(buried.requests()) == 1 and good not in buried.ids()
    assert dead("drop", "--all", "--yes").exit_code == 0
    assert buried.ids() == []


def test_all_of_a_reason_go_back_in_their_order_and_none_that_came_since(buried: Buried, dead: Dead) -> None:
    for number in range(30):
        buried.bury(b"%d" % number, "it was lost" if number % 3 else "no JSON")
    result = dead("retry", "--all", "--reason", "was lost")
    entries = [entry for entry, _ in buried.requests()]
    assert result.exit_code == 0
    assert result.stdout.split() == entries
    assert "20 dead letters put back" in result.stderr
    assert [flat[1] for _, flat in buried.requests()] == [b"%d" % n for n in range(30) if n % 3]
    ids = buried.letters.ids()
    late = buried.bury(b"late")
    assert late not in ids and len(ids) == 10


def test_a_retried_request_is_run_like_any_other(modes: Fleet) -> None:
    """Also one that had no attempt left, and one whose producer was told already that it failed."""
    key = f"{modes.queue}-retried"
    modes.client.set(key, json.dumps({"status": "failed"}))
    value = json.dumps({"input": {"mode": "hello"}, "response_queue": key})
    fields = {"reason": "lost", "entry": "1-0", "attempts": "4", "owner": "w~00000000.0", "value": value}
    letter = modes.client.xadd(f"{modes.queue}-dead", fields)  # type: ignore[arg-type]  # as above
    with redis.Redis.from_url(modes.server.url, protocol=2) as client:
        assert DeadLetters(client, modes.queue).retry(str(letter))
    response = modes.producer.wait_for(key, lambda response: response["status"] == "succeeded")
    assert response["output"] == "hello world"


# Looking


def test_the_newest_are_listed_last_as_json_lines(buried: Buried, dead: Dead) -> None:
    for number in range(25):
        buried.bury(b"x" * number, f"reason {number}")
    result = dead("list", "--limit", "12")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [line["id"] for line in lines] == buried.ids()[-12:]
    assert [line["reason"] for line in lines] == [f"reason {number}" for number in range(13, 25)]
    assert lines[-1] == {
        "id": buried.ids()[-1],
        "buried_at": int(buried.ids()[-1].partition("-")[0]) / 1000,
        "entry": lines[-1]["entry"],
        "attempts": 0,
        "owner": OWNER,
        "reason": "reason 24",
        "size": len("value") + 24,
    }
    found = dead("list", "--reason", "reason 1", "--output", "json").stdout.splitlines()
    assert [json.loads(line)["reason"] for line in found] == ["reason 1"] + [f"reason {n}" for n in range(10, 20)]


def test_as_text_each_is_one_plain_line_when_it_goes_into_a_pipe(buried: Buried, dead: Dead) -> None:
    letter = buried.bury(b"{}", "lost " * 60)
    buried.bury(b"{}", "second")
    result = dead("list", "--output", "text", "--limit", "1")
    assert "the newest 1 of 2 letters" in result.stderr
    result = dead("list", "--output", "text")
    header, first, second = result.stdout.splitlines()
    assert header.split()[:2] == ["letter", "buried"] and header.split()[-1] == "reason"
    assert first.startswith(letter) and first.rstrip().endswith("lost") and OWNER in first
    assert second.rstrip().endswith("second")


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b\r\n\x00"


def test_nothing_of_a_hostile_letter_reaches_a_terminal_as_it_is(buried: Buried, dead: Dead) -> None:
    letter = buried.bury(
        [
            (b"value", json.dumps({"input": {HOSTILE: HOSTILE}}, ensure_ascii=False).encode()),
            (HOSTILE.encode(), HOSTILE.encode() + b"\xff\x1b"),
            (b"markup", b"[red]not red[/red] [link=http://x]"),
        ],
        f"reason {HOSTILE}",
    )
    for output in ("text", "json"):
        for arguments in (("list",), ("show", letter), ("list", "--reason", HOSTILE)):
            text = dead(*arguments, "--output", output).stdout
            assert not set(text) & set(HOSTILE) - set("\nowned]0;2[J.gnpex"), (arguments, output)
            assert "\r" not in text and "\x7f" not in text
    text = dead("show", letter, "--output", "text").stdout
    assert r"\x1b[2J" in text and "[red]not red[/red]" in text and r"\xff\x1b" in text


def test_a_letter_is_shown_with_its_request_indented(buried: Buried, dead: Dead) -> None:
    letter = buried.bury(
        b'{"response_queue":"r","input":{"text":"gr\xc3\xbc\xc3\x9fe","long":"' + b"y" * 10_000 + b'"}}'
    )
    text = dead("show", letter, "--output", "text").stdout
    assert '    "text": "grüße",\n' in text
    assert "yyy… (1" in text and len(text) < 2000
    for part in (letter, "it was lost", OWNER, "field value:"):
        assert part in text


@pytest.mark.parametrize(
    "value",
    [b'{"a":1,"a":2}', b'{"a":', b"[" * 5000 + b"]" * 5000, b"1" * 5000, b"\xff\xfe", b"", b"a\n" * 2000],
    ids=["twice", "cut", "deep", "digits", "binary", "empty", "lines"],
)
def test_a_request_that_is_no_good_is_shown_as_it_is(buried: Buried, dead: Dead, value: bytes) -> None:
    letter = buried.bury(value)
    text = dead("show", letter, "--output", "text").stdout.partition("field value:\n")[2]
    shown = value.decode(errors="backslashreplace").split("\n")
    assert text.startswith(shown[0][:500])
    assert len(text.splitlines()) <= 501
    assert "characters)" in text or "lines)" in text or text == shown[0] + "\n"


def test_as_json_nothing_of_a_letter_is_left_out(buried: Buried, dead: Dead) -> None:
    value = b'{"text":"' + b"y" * 20_000 + b'"}'
    letter = buried.bury([(b"value", value), (b"value", b"\xff"), (b"reason", "grüße".encode())])
    shown = json.loads(dead("show", letter).stdout)
    base = {"base64": base64.b64encode(b"\xff").decode()}
    assert shown["fields"] == [["value", value.decode()], ["value", base], ["reason", "grüße"]]
    assert (shown["id"], shown["reason"], shown["attempts"]) == (letter, "it was lost", 0)


# Throwing away


def test_what_is_dropped_is_gone_and_nothing_else_is(buried: Buried, dead: Dead) -> None:
    first, second, third, fourth = (buried.bury(b"{}", reason) for reason in ("a", "b", "a", "c"))
    assert dead("drop", fourth, "--yes").exit_code == 0
    assert dead("drop", "--all", "--reason", "a", "--yes").exit_code == 0
    assert buried.ids() == [second]
    assert not buried.requests()
    result = dead("drop", second, first, third, "--yes")
    assert result.exit_code == 1
    assert "1 dead letter of" in result.stderr and "2 dead letters of these were not there" in result.stderr
    assert buried.ids() == []


def test_without_a_terminal_nothing_is_dropped_unasked(buried: Buried, dead: Dead) -> None:
    letter = buried.bury(b"{}")
    result = dead("drop", letter)
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert buried.ids() == [letter]


@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, 0), ("n\n", 1, 30), ("\n", 1, 30)])
def test_on_a_terminal_it_asks_first(buried: Buried, answer: str, status: int, left: int) -> None:
    for _ in range(30):
        buried.bury(b"{}")
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cog_celery", "dead", "drop", "--all", "--queue", buried.queue.name],
        env=os.environ | {"REDIS_URL": buried.server.url, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=side,
        stdout=side,
        stderr=subprocess.PIPE,
    )
    os.close(side)
    os.write(main, answer.encode())
    _, err = process.communicate(timeout=30)
    os.close(main)
    assert process.returncode == status
    assert f"Drop 30 dead letters of {buried.queue.name} for good?" in err.decode()
    assert len(buried.ids()) == left


def test_many_at_once_show_how_far_it_is_on_a_terminal(buried: Buried) -> None:
    for number in range(25):
        buried.bury(b"%d" % number)
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cog_celery", "dead", "retry", "--all", "--queue", buried.queue.name],
        env=os.environ | {"REDIS_URL": buried.server.url, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    screen = b""
    while True:
        try:
            screen += os.read(main, 65536)
        except OSError:  # how Linux says that the other side of a terminal is closed
            break
    os.close(main)
    assert process.wait(10) == 0
    assert b"retrying" in screen and b"100%" in screen
    for entry, _ in buried.requests():
        assert entry.encode() in screen


# What can go wrong


@pytest.mark.parametrize(
    "arguments",
    [
        *(["retry"], ["drop"], ["show"], ["retry", "1-0", "--all"], ["drop", "1-0", "--reason", "x", "--yes"]),
        *(["retry", "1"], ["retry", "-"], ["show", "*"], ["retry", "1-0", "99999999999999999999-0"]),
        *(["list", "--limit", "0"], ["list", "--queue", "q-dead"], ["lst"], []),
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_status_2_and_changes_nothing(buried: Buried, dead: Dead, arguments: list[str]) -> None:
    letter = buried.bury(b"{}")
    result = dead(*arguments)
    assert result.exit_code == 2
    assert result.stderr and not result.stdout
    assert buried.ids() == [letter]


def test_what_is_not_there_is_exit_status_1_and_says_what_to_do(buried: Buried, dead: Dead) -> None:
    letter = buried.bury(b"{}")
    for command in ("show", "retry"):
        result = dead(command, "1-0")
        assert result.exit_code == 1
        assert "has no dead letter 1-0" in result.stderr and "cog-celery dead list" in result.stderr
    result = dead("retry", "1-0", letter)  # the others are done all the same
    assert result.exit_code == 1
    assert result.stdout.split() == [entry for entry, _ in buried.requests()] and len(result.stdout.split()) == 1
    for arguments in (["list"], ["retry", "--all"], ["drop", "--all", "--yes"], ["list", "--reason", "x"]):
        result = dead(*arguments)
        assert result.exit_code == 1
        assert "has no dead letters" in result.stderr and not result.stdout


def test_a_server_that_is_not_there_or_a_key_of_another_type_is_one_line(buried: Buried, dead: Dead) -> None:
    result = dead("list", url="redis://:hunter2@127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "hunter2" not in result.stderr
    buried.client.set(buried.queue.dead, "no stream")
    for arguments in (["list"], ["show", "1-0"], ["retry", "1-0"], ["drop", "1-0", "--yes"]):
        result = dead(*arguments)
        assert result.exit_code == 1
        assert "WRONGTYPE" in result.stderr and result.stderr.count("\n") == 1


def test_a_letter_from_the_lane_goes_back_there_as_long_as_there_is_one(buried: Buried) -> None:
    queue, link = buried.queue, buried.link
    queue.agree(link, None, None, None, None, True)
    queue.create_group(link)
    first, second = (buried.bury(b'{"input": {}}', lane=True) for _ in range(2))
    head = buried.letters.newest(1)[0]
    assert head.entry.endswith(".high")
    [sighting] = find(buried.client, [queue.name], head.entry).sightings
    assert (sighting.state, sighting.letter) == ("dead", second)
    entry = buried.letters.retry(first)
    assert entry is not None and entry.endswith(".high") and buried.requests() == []
    assert [id.decode() for id, _ in link.call("XRANGE", queue.high, "-", "+")] == [entry.removesuffix(".high")]
    link.call("HSET", queue.settings_key, "priority", "false")
    entry = buried.letters.retry(second)
    assert [id for id, _ in buried.requests()] == [entry]
