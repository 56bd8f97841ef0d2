"""Fixtures that all tests share: servers, fleets, recordings, and what a failed test shows of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.fleet import PEER, Fleet
from tests.support.monitor import Monitor
from tests.support.producer import Producer
from tests.support.servers import KINDS, UNDER_ACL, RedisServer, Server, binary
from tests.support.web import Web

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

FleetFactory = Callable[..., Fleet]

_FLEETS: list[Fleet] = []
_MONITORS: list[Monitor] = []
_SERVERS: list[RedisServer] = []
"""What a failed test shows: the fleets that were there, the recordings that it made, what its servers forbade."""


# A busy machine is no reason to fail.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_server: run on Debian's redis-server too, where there is one")
    config.addinivalue_line("markers", "ours: about this project's own parts; means nothing to another consumer")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell has started us in the background: what tests start would be deaf to Ctrl-C, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if PEER:
        skip = pytest.mark.skip(reason="COG_PEER_PYTHON is set: the consumer is not ours")
        for item in items:
            if item.get_closest_marker("ours"):
                item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_server" in metafunc.fixturenames:
        every = next(metafunc.definition.iter_markers("every_server"), None)
        metafunc.parametrize("redis_server", KINDS if every else KINDS[:1], indirect=True, scope="session")


def missing(what: str) -> None:
    """Skip on a user's machine; fail in CI, which installs all that the tests can use."""
    if IN_CI:
        pytest.fail(f"{what} is missing, and CI=true", pytrace=False)
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server shared by all tests: queues and keys have unique names."""
    kind: str = request.param
    if binary(kind) is None:
        missing(f"a {kind}-server on PATH")
    server = RedisServer(kind, tmp_path_factory.mktemp(kind))
    _SERVERS.append(server)
    yield server
    _SERVERS.remove(server)
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test alone, which may break it."""
    server = RedisServer("valkey", tmp_path)
    yield server
    server.stop()


@contextmanager
def recording(server: Server) -> Iterator[Monitor]:
    """A recording that a failed test shows."""
    with Monitor(server.client) as monitor:
        _MONITORS.append(monitor)
        yield monitor


@pytest.fixture
def monitor(redis_server: RedisServer) -> Iterator[Monitor]:
    """A recording of the shared server during this test."""
    with recording(redis_server) as monitor:
        yield monitor


@contextmanager
def fleets_on(server: Server, folder: Path) -> Iterator[FleetFactory]:
    """Makes fleets, and at the end stops them all and asserts that they end well."""
    fleets: list[Fleet] = []

    def make(model: str | Path = "modes", *, start: bool = True, **options: Any) -> Fleet:
        fleet = Fleet(server, folder, model, **options)
        fleets.append(fleet)
        _FLEETS.append(fleet)
        return fleet.start() if start else fleet

    try:
        yield make
        for fleet in fleets:
            fleet.terminate()
        for fleet in fleets:
            fleet.stop()
    finally:
        for fleet in fleets:
            fleet.discard()


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[FleetFactory]:
    """Makes fleets for this test alone. Afterwards all that still runs must end with 0 at SIGTERM and leave nothing."""
    with fleets_on(redis_server, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def shared_fleet(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetFactory]:
    """Makes fleets that the tests of one module share."""
    with fleets_on(redis_server, tmp_path_factory.mktemp("fleet")) as make:
        yield make


@pytest.fixture(scope="session")
def modes(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One bridge and one worker with one slot, for all tests that only need a predictor that does as it is told."""
    with fleets_on(redis_server, tmp_path_factory.mktemp("modes")) as make:
        yield make("modes", cancel_grace=1, lease=3)


@pytest.fixture
def producer(modes: Fleet) -> Producer:
    """A producer of `modes`' queue."""
    return modes.producer


@pytest.fixture
def web() -> Iterator[Web]:
    """A server of files whose answers the test scripts."""
    with Web() as web:
        yield web


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows the end of its processes' logs, and the commands that its server ran."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        report.sections += [(f"fleet of {fleet.queue}", fleet.log(8_000)) for fleet in _FLEETS]
        if UNDER_ACL:
            report.sections += [("denied", "\n".join(server.denied())) for server in _SERVERS]
        report.sections += [("MONITOR", monitor.timeline()) for monitor in _MONITORS]
    if report.when == "teardown":
        _MONITORS.clear()
        _FLEETS[:] = [fleet for fleet in _FLEETS if not fleet.discarded]
