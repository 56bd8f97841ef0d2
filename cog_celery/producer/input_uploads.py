"""A producer's own files, put where the workers of a queue can fetch them.

It must not know what a file is an input of, nor how progress is shown.
"""

from __future__ import annotations

import math
import os
import stat
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from cog_celery.errors import UploadError, UrlError, UsageError
from cog_celery.files import mime, urls
from cog_celery.files.cancel import Cancel
from cog_celery.files.http_client import Client
from cog_celery.files.http_uploads import Destination, HttpUploads, Terms
from cog_celery.files.output_files import OutputFile
from cog_celery.files.urls import AddressPolicy

LIFETIME: Final = 24 * 3600.0
"""Seconds for which a presigned URL of an object in S3 can be fetched: a request may wait for its turn for long."""

_ANYWHERE: Final = ("0.0.0.0/0", "::/0")
"""Whoever types the URL sits at this machine, and may mean any other."""

Progress = Callable[[str, int, int], None]
"""Is told of a file's name, the bytes that have been sent, and those that there are."""


class InputUploads:
    """Files go to a folder of their own each below `url`, http(s)://… or s3://bucket/prefix. Raises UsageError."""

    def __init__(self, url: str, progress: Progress) -> None:
        self._url = url
        self._client = Client(AddressPolicy(allow=_ANYWHERE))
        self._progress = progress

    def put(self, path: Path) -> str:
        """Upload the file; the URL by which it can be fetched. Raises UsageError if it cannot be read, UploadError."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError(f"{path} is no regular file")
        file = _Watched(path.name, mime.type_of(path.name), descriptor, self._progress)
        folder = uuid.uuid4().hex
        try:
            with closing(self._place(folder)) as place:
                return place.store(file, path.name, Terms({}, Cancel(), math.inf, id=folder))
        except UploadError as error:
            # Its messages are about a worker's files; this one is a producer's.
            raise UploadError(f"{path}: {str(error).replace('The output file', 'the file', 1)}") from None
        finally:
            file.close()

    def _place(self, folder: str) -> Destination:
        if self._url.startswith("s3://"):
            from cog_celery.files.s3 import Bucket  # boto3 takes its time

            return Bucket(self._url, client=self._client, key="{id}/{name}", output="presigned", lifetime=LIFETIME)
        try:
            return HttpUploads(urls.parse(self._url).child(folder), "put", self._client)
        except UrlError as error:
            raise UsageError(f"the input upload URL {urls.redact(self._url)} cannot be used: {error}") from None


class _Watched(OutputFile):
    """A file whose reader is watched: to read is to send, but for a block or two."""

    def __init__(self, name: str, type: str, descriptor: int, progress: Progress) -> None:
        super().__init__(name, type, descriptor)
        self._progress = progress
        self._sent = 0

    def read(self, position: int, most: int) -> bytes:
        block = super().read(position, most)
        self._sent = len(block) if position == 0 else min(self.size, self._sent + len(block))  # 0: another try
        self._progress(self.name, self._sent, self.size)
        return block
