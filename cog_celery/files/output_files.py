"""A predictor's output file, opened once and read from wherever: exactly what it was when it was given out.

It must not know where it goes, nor who made it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from cog_celery.errors import UploadError
from cog_celery.files import mime
from cog_celery.runtime.cog._runner.places import NotToBeGiven, real_place

BLOCK: Final = 112 << 10
"""One send, which must be done within the connect timeout: larger blocks would break slow lines."""


class OutputFile:
    """An open output file: exactly the `size` bytes that it had when it was opened. Read by one thread or several."""

    def __init__(self, name: str, type: str, descriptor: int) -> None:
        self.name = name
        self.type = type
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.size = status.st_size
        self._version = (status.st_size, status.st_mtime_ns)
        self._content: bytes | None = None

    def copy(self) -> None:
        """Keep the content in memory: whatever happens to the file. Raises UploadError."""
        self._content = b"".join(self.blocks())

    def read(self, position: int, most: int) -> bytes:
        """The bytes from `position` on, at least one. Raises UploadError if there are none any more."""
        if self._content is not None:
            return self._content[position : position + most]
        try:
            block = os.pread(self.descriptor, min(most, self.size - position), position)
        except OSError as error:
            raise UploadError(f"The output file {quoted(self.name)} could not be read: {error.strerror}.") from None
        if not block:
            raise UploadError(f"The output file {quoted(self.name)} became shorter while it was uploaded. {_HANDS_OFF}")
        return block

    def blocks(self) -> Iterator[bytes]:
        """The content, from the start, at every call. Raises UploadError if the file became shorter."""
        position = 0
        while position < self.size:
            block = self.read(position, BLOCK)
            position += len(block)
            yield block

    def check_unchanged(self) -> None:
        """Raise UploadError if something else may have been read than what was given out."""
        if self._content is None:
            status = os.fstat(self.descriptor)
            if (status.st_size, status.st_mtime_ns) != self._version:
                raise UploadError(
                    f"The output file {quoted(self.name)} was changed while it was uploaded. {_HANDS_OFF}"
                )

    def close(self) -> int:
        """Let go of it; the bytes of memory that are free now."""
        os.close(self.descriptor)
        freed = 0 if self._content is None else len(self._content)
        self._content = None
        return freed


_HANDS_OFF = "The predictor must not change a file that it has given out: give each output a file of its own."


def open_output(path: str, scratch: str | None = None) -> OutputFile:
    """The file that a predictor gave out, under the last part of its path; to be closed.

    Raises UploadError unless it is a regular file that can be read and given out; `scratch` is the runner's temporary
    folder.
    """
    name = quoted(os.path.basename(path))
    if not os.path.isabs(path):
        raise UploadError(f"The output file {name} was not given as an absolute path.")
    try:
        # O_NONBLOCK: nobody may ever open the other end of a FIFO. O_NOFOLLOW: the links have been followed.
        descriptor = os.open(real_place(path, scratch), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except NotToBeGiven as error:
        raise UploadError(f"The output file {name} {error}.") from None
    except FileNotFoundError:
        raise UploadError(
            f"The output file {name} does not exist. The predictor must leave its files until predict() has returned."
        ) from None
    except OSError as error:
        raise UploadError(f"The output file {name} could not be opened: {error.strerror}.") from None
    except ValueError:  # a NUL, or characters that are no file name
        raise UploadError(f"The output file {name} has a name that no file can have.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UploadError(f"The output file {name} is {what}. Only regular files can be uploaded.")
        base = os.path.basename(path)
        return OutputFile(base, mime.type_of(base), descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def quoted(name: str) -> str:
    """A file name for URLs and messages: percent-encoded, and different for different names of whatever bytes."""
    return quote(name.encode("utf-8", "surrogatepass"), safe="")
