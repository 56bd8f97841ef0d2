"""Fixtures of the unit tests alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cog_celery.files.http_client import Client
from tests.support.web import LOCAL


@pytest.fixture
def client() -> Iterator[Client]:
    """For servers of this machine, and of little patience."""
    client = Client(LOCAL, connect_timeout=2, read_timeout=2, first_delay=0.01)
    yield client
    client.close()
