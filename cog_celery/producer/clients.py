"""Redis clients for commands that a person waits for: they fail soon and say where, and never send a command twice.

It must not know what is asked of the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import NoPermissionError, ReadOnlyError

from cog_celery.delivery import servers
from cog_celery.errors import ServerError
from cog_celery.settings import masked_url

TIMEOUT = 10.0
"""Seconds for a connection, and for an answer."""


@contextmanager
def connected(url: str, *, timeout: float = TIMEOUT) -> Iterator[redis.Redis]:
    """A client that has been answered once; answers are bytes. What the server refuses within is a ServerError.

    Nothing is retried: an XADD whose answer got lost, sent again, would be a second request.
    """
    shown = masked_url(url)
    with servers.client(url, socket_timeout=timeout, socket_connect_timeout=timeout) as client:
        try:
            client.ping()
            yield client
        except redis.AuthenticationError as error:
            raise ServerError(
                f"Redis at {shown} does not let us in ({error}): put user and password in its URL"
            ) from error
        except redis.TimeoutError as error:
            raise ServerError(f"Redis at {shown} did not answer within {timeout:g} s") from error
        except redis.ConnectionError as error:
            raise ServerError(
                f"Redis at {shown} cannot be reached: is it running, and is the URL right? ({servers.why(error)})"
            ) from error
        except NoPermissionError as error:
            raise ServerError(f"Redis at {shown} forbids what is needed here: {error}") from error
        except ReadOnlyError as error:
            raise ServerError(
                f"Redis at {shown} is a replica, which cannot be written to: name the primary, or its sentinels "
                "(redis+sentinel://)"
            ) from error
        except redis.RedisError as error:
            raise ServerError(f"Redis at {shown} refused: {error}") from error
