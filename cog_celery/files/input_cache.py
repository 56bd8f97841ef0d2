"""A folder of input files that all workers of a host share: entries by URL, the locks on them, and their total size.

It must not know how a file is fetched, nor whether an entry still holds: that, only the file's server can say.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote, unquote_plus

import msgspec

from cog_celery.errors import UploadError, UsageError
from cog_celery.files.cancel import Cancel
from cog_celery.files.urls import HttpUrl
from cog_celery.settings import Settings

LEAST: Final = 64 << 10
"""Bytes. To fetch a smaller file takes no longer than to ask whether it has changed; and it bounds the entries of a
folder, and so what a look at all of them costs: 160,000 in 10 GiB, half a second."""

KEPT_SHARE: Final = 0.9
"""What is left of the size when room is made, so that not every new entry needs a look at all of them."""

STEP: Final = 16 << 20
"""Bytes that a file is given room for at a time, so that a length that is only claimed removes nothing; and bytes that
are copied between two looks at a cancellation."""

PATIENCE: Final = 30.0
"""Seconds for which who waits for another's download sees it stand still, before they fetch the file on their own."""

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25
"""Seconds between two tries to get a lock: flock() cannot be waited for and canceled at the same time."""

PRIVATE: Final = 0o600
_PART: Final = ".part"
_LEDGER: Final = ".cog-celery-size"
_OURS: Final = re.compile(r"[0-9a-f]{64}(\.part)?")
"""All other files are none of ours, and are left alone."""
_DIGITS: Final = 20
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_END: Final = struct.Struct(">I8s")
_MAGIC: Final = b"coginput"
_MAX_ABOUT: Final = 4096
_NOT_HERE: Final = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What copy_file_range() says between some file systems, and on old kernels."""

_SIGNATURES: Final[tuple[tuple[frozenset[str], frozenset[str]], ...]] = tuple(
    (frozenset(needed.split()), frozenset(f"{needed} {others}".split()))
    for needed, others in (
        (
            "x-amz-signature x-amz-credential",
            "x-amz-algorithm x-amz-date x-amz-expires x-amz-signedheaders x-amz-security-token",
        ),
        ("x-goog-signature x-goog-credential", "x-goog-algorithm x-goog-date x-goog-expires x-goog-signedheaders"),
        ("awsaccesskeyid signature expires", "x-amz-security-token"),
        ("googleaccessid signature expires", ""),
        ("sig sv", "se sp st sr spr sip si ss srt sdd ses skoid sktid skt ske sks skv saoid suoid scid"),
        ("key-pair-id signature", "policy expires hash-algorithm"),
    )
)
"""Presigned URLs of Amazon, Google, both as they were before, Azure and CloudFront: the parameters by which each is
known, and all that belong to the signature. `sig` or `expires` alone may well say which file is meant."""

log = logging.getLogger(__name__)


def key_of(url: HttpUrl) -> str:
    """The name of the URL's content: a hash of all of it but a signature, which is another one every time."""
    path, _, query = url.target.partition("?")
    user = "" if url.credentials is None else f"@{url.credentials}"
    text = "\0".join((url.scheme, url.host, str(url.port), user, path, _unsigned(query)))
    return hashlib.sha256(text.encode()).hexdigest()


def _unsigned(query: str) -> str:
    parameters = query.split("&")
    names = [unquote_plus(parameter.partition("=")[0]).lower() for parameter in parameters]
    dropped: set[str] = set()
    for needed, all_of_it in _SIGNATURES:
        if needed <= set(names):
            dropped |= all_of_it
    return "&".join(parameter for parameter, name in zip(parameters, names, strict=True) if name not in dropped)


class InputCache:
    """The folder; for any number of threads and processes. `size` is in bytes. Raises UsageError.

    Entries are copied for a prediction, never linked: what a model does to its input is nobody else's business. Where
    the file system shares blocks (XFS, Btrfs), a copy costs nothing. When the folder fails, that is logged, and files
    are fetched as without it.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.size = size
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.folder.mkdir(0o700)
            status = os.lstat(self.folder)
        except OSError as error:
            raise UsageError(f"the input cache {self.folder} cannot be made: {error.strerror}") from None
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"the input cache {self.folder} is no folder: name one, or a place where one can be made")
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise UsageError(
                f"the input cache {self.folder} can be written by others than this worker's user, who could change its "
                "files: name a folder of this user's own, and chmod 700 it"
            )
        try:
            with self._ledger():
                pass
        except OSError as error:
            raise UsageError(f"the input cache {self.folder} cannot be used: {error.strerror}") from None

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """As a process was told; None without a folder. Raises UsageError."""
        return cls(Path(settings.input_cache), settings.input_cache_size) if settings.input_cache else None

    def find(self, key: str) -> Entry | None:
        """The entry, which is then the one used last; None when there is none. It stays readable until it is closed."""
        path = self.folder / key
        try:
            descriptor = os.open(path, os.O_RDONLY | _OPEN)
        except FileNotFoundError:
            return None
        except OSError as error:
            _warn("read", error)
            return None
        try:
            status = os.fstat(descriptor)
            about = _about(descriptor, status)
            if about is None:
                # Written to by who knows whom, or before a crash of the machine.
                log.warning("the entry %s of the input cache is not as it was kept: dropped", key[:12])
                self._remove(path, status)
            else:
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
                return Entry(self, path, descriptor, status, about)
        except OSError as error:
            _warn("read", error)
        os.close(descriptor)
        return None

    def claim(self, key: str, cancel: Cancel, *, wait: bool = True) -> Part | None:
        """The right to fetch this content, which one at a time has; `wait` until that one is done.

        None: not now, or it stands still, or the folder fails. Who gets it looks for the entry once more. Raises
        Canceled.
        """
        path = self.folder / (key + _PART)
        pause, stamp, since = FIRST_PAUSE, 0, time.monotonic()
        while True:
            try:
                descriptor = _locked(path, os.O_CREAT)
                if descriptor is not None:
                    return self._part(path, descriptor)
                written = _modified(path)
            except OSError as error:
                _warn("written", error)
                return None
            now = time.monotonic()
            if written != stamp:
                stamp, since = written, now
            if not wait or now - since > PATIENCE:
                return None
            cancel.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def free(self, count: int, place: Path) -> None:
        """Remove entries of `count` bytes, if that makes room at `place`: those first that were used least recently."""
        with suppress(OSError):
            if os.stat(place).st_dev == os.stat(self.folder).st_dev:
                with self._ledger() as ledger:
                    ledger.total = self._shrink(max(0, ledger.total - count))

    def refuse(self, path: str) -> None:
        """Raise UploadError if an output lies here: other predictions' inputs are nobody's output."""
        with suppress(ValueError):  # no path: who opens it says so
            if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
                raise UploadError(
                    f"The output file {quote(os.path.basename(path))} lies in the worker's cache of input files, which "
                    "are not given out."
                )

    def _part(self, path: Path, descriptor: int) -> Part:
        part = Part(self, path, descriptor)
        part.reserved = os.fstat(descriptor).st_size  # by a process that was killed
        return part

    @contextmanager
    def _ledger(self) -> Iterator[_Ledger]:
        """The total, to be changed under the lock under which it and the files' sizes agree. Raises OSError."""
        descriptor = os.open(self.folder / _LEDGER, os.O_RDWR | os.O_CREAT | _OPEN, PRIVATE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, _DIGITS, 0)
            ledger = _Ledger(int(text) if len(text) == _DIGITS and text.isdigit() else self._shrink(self.size))
            try:
                yield ledger
            finally:
                # In one write of always the same length: a process may be killed at any time.
                os.pwrite(descriptor, b"%0*d" % (_DIGITS, max(0, ledger.total)), 0)
        finally:
            os.close(descriptor)

    def reserve(self, part: Part, length: int) -> None:
        """Let the part have `length` bytes, others go for it. Raises OSError when there can be no room."""
        with self._ledger() as ledger:
            more = length - part.reserved
            if ledger.total + more > self.size:
                ledger.total = self._shrink(max(0, int(self.size * KEPT_SHARE) - more))
            if ledger.total + more > self.size:
                raise OSError(errno.ENOSPC, "the input cache is too small")
            os.ftruncate(part.descriptor, length)  # all that looks at it then counts the same
            part.reserved = length
            ledger.total += more

    def release(self, part: Part, place: Path | None = None) -> None:
        """Remove the part, or move it to `place`. Raises OSError; its room is free all the same."""
        with self._ledger() as ledger:
            ledger.total -= part.reserved
            part.reserved = 0
            if place is None:
                part.path.unlink()
            else:
                part.path.rename(place)

    def publish(self, part: Part, about: _About) -> None:
        """Make an entry of the part, in place of an older one. Raises OSError."""
        encoded = msgspec.json.encode(about)
        tail = encoded + _END.pack(len(encoded), _MAGIC)
        path = part.path.with_name(part.path.name.removesuffix(_PART))
        with self._ledger() as ledger:
            os.ftruncate(part.descriptor, about.size)
            os.pwrite(part.descriptor, tail, about.size)
            os.fchmod(part.descriptor, 0o400)
            os.utime(part.descriptor, ns=(time.time_ns(), about.written * 10**9))
            replaced = _size(path)
            part.path.rename(path)
            ledger.total += about.size + len(tail) - part.reserved - replaced
            part.reserved = 0

    def _remove(self, path: Path, status: os.stat_result) -> None:
        """Remove an entry, unless another one has taken its place."""
        with suppress(FileNotFoundError), self._ledger() as ledger:
            if os.path.samestat(os.lstat(path), status):
                path.unlink()
                ledger.total -= status.st_size

    def _shrink(self, limit: int) -> int:
        """Remove the entries used least recently until `limit`, and what dead processes left; the true total then."""
        entries, total = [], 0
        with os.scandir(self.folder) as files:
            for file in files:
                if not _OURS.fullmatch(file.name):
                    continue
                with suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if not file.name.endswith(_PART):
                        entries.append((status.st_atime_ns, status.st_size, file.path))
                    elif _removed_if_abandoned(Path(file.path)):
                        continue
                    total += status.st_size
        entries.sort()
        removed = 0
        for _, size, path in entries:
            if total <= limit:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
            removed += 1
        if removed:
            log.info("input cache: %d of %d files went, %d MiB are left", removed, len(entries), total >> 20)
        return total


class Entry:
    """A file in the cache, open: readable to the end, whoever replaces or removes it meanwhile."""

    def __init__(self, cache: InputCache, path: Path, descriptor: int, status: os.stat_result, about: _About) -> None:
        self.etag = about.etag
        """Strong, with its quotes."""
        self.source = about.source
        """`key_of` the URL that answered, after all redirects."""
        self.size = about.size
        self._cache = cache
        self._path = path
        self._descriptor = descriptor
        self._status = status

    def copy(self, path: Path, cancel: Cancel) -> None:
        """Make a file of its content; on a full disk, others go for it. Raises OSError, Canceled."""
        try:
            _copy(self._descriptor, path, self.size, cancel)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._cache.free(self.size, path.parent)
            _copy(self._descriptor, path, self.size, cancel)

    def forget(self) -> None:
        """Remove it from the cache."""
        with suppress(OSError):
            self._cache._remove(self._path, self._status)

    def close(self) -> None:
        """Let go of it; once."""
        os.close(self._descriptor)


class Part:
    """A file that is about to become an entry. Its file is also the lock on its key: both end when the process does."""

    def __init__(self, cache: InputCache, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.reserved = 0
        """Bytes that count as its own in the cache's total."""
        self.size = 0
        """Bytes written."""
        self._length: int | None = None
        self._cache = cache
        self._released = False

    def begin(self, length: int | None) -> bool:
        """Begin at the start, with `length` bytes to come, if that is known; False when they cannot be kept."""
        if self._released or (length is not None and not LEAST <= length <= self._cache.size):
            return False
        self.size, self._length = 0, length
        try:
            self._reserve(1)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                _warn("written", error)
            return False
        return True

    def _reserve(self, end: int) -> None:
        """See to it that `end` bytes have room. Raises OSError."""
        if end > self.reserved:
            step = self.reserved + min(STEP, self._cache.size // 16)
            self._cache.reserve(self, max(end, step if self._length is None else min(step, self._length)))

    def write(self, data: bytes) -> None:
        """Append the data, all of it or nothing. Raises OSError."""
        end = self.size + len(data)
        self._reserve(end)
        try:
            self._write(data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._cache.free(self.reserved - self.size, self._cache.folder)
            self._write(data)
        self.size = end

    def _write(self, data: bytes) -> None:
        rest, position = memoryview(data), self.size
        while rest:
            count = os.pwrite(self.descriptor, rest, position)
            rest, position = rest[count:], position + count

    def give(self, path: Path, cancel: Cancel) -> FileIO:
        """Leave what was written to a file at `path`, open at its end, and keep nothing. Raises OSError, Canceled."""
        os.ftruncate(self.descriptor, self.size)
        try:
            self._cache.release(self, path)
        except OSError:
            _copy(self.descriptor, path, self.size, cancel)
            self.close()
        else:
            self._end()
        file = FileIO(path, "r+")
        file.seek(self.size)
        return file

    def keep(self, path: Path, etag: str, source: str, cancel: Cancel) -> None:
        """Make a file of it at `path`, and an entry, if there is room for both. Raises OSError, Canceled."""
        try:
            _copy(self.descriptor, path, self.size, cancel)
        except OSError:
            self.give(path, cancel).close()
            return
        if self.size < LEAST:
            self.close()
            return
        try:
            self._cache.publish(self, _About(etag, source, self.size, int(time.time()), _boot()))
        except OSError as error:
            _warn("written", error)
            self.close()
        else:
            self._end()

    def close(self) -> None:
        """Let go of the key, and remove what has not become an entry; may be called twice."""
        if not self._released:
            with suppress(OSError):
                self._cache.release(self)
            self._end()

    def _end(self) -> None:
        self._released = True
        os.close(self.descriptor)


class _Ledger:
    """The total while its lock is held."""

    def __init__(self, total: int) -> None:
        self.total = total


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands behind an entry's content, in the same file, so that neither can be there without the other.

    `written` is the modification time that the file was given (seconds): any later writer gives it another one.
    `boot`: what was not yet on the disk when a machine crashed cannot be told from what was.
    """

    etag: str
    source: str
    size: int
    written: int
    boot: str


def _about(descriptor: int, status: os.stat_result) -> _About | None:
    """What an entry says of itself; None when it is not as it was kept."""
    end = status.st_size - _END.size
    if not stat.S_ISREG(status.st_mode) or end < 0:
        return None
    length, magic = _END.unpack(os.pread(descriptor, _END.size, end))
    if magic != _MAGIC or not 0 < length <= min(end, _MAX_ABOUT):
        return None
    try:
        about = msgspec.json.decode(os.pread(descriptor, length, end - length), type=_About)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    as_kept = (about.size, about.written * 10**9, about.boot) == (end - length, status.st_mtime_ns, _boot())
    return about if as_kept else None


def _boot() -> str:
    """What is another text after each start of the machine; empty where nothing tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _locked(path: Path, create: int = 0) -> int | None:
    """The file's descriptor with its lock held; None when another has it, or the file is not at `path` any more."""
    descriptor = os.open(path, os.O_RDWR | create | _OPEN, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _removed_if_abandoned(part: Path) -> bool:
    descriptor = _locked(part)
    if descriptor is None:
        return False
    part.unlink()
    os.close(descriptor)
    return True


def _modified(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def _copy(source: int, path: Path, size: int, cancel: Cancel) -> None:
    """A new file at `path` of the first `size` bytes, by the kernel, which shares the blocks where it can."""
    with FileIO(path, "w") as file:
        position, shared = 0, True
        while position < size:
            cancel.check()
            count = 0
            if shared:
                try:
                    count = os.copy_file_range(source, file.fileno(), min(STEP, size - position), position, position)
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                    shared = False
                    file.seek(position)
            if not shared:
                count = os.sendfile(file.fileno(), source, position, min(STEP, size - position))
            if not count:
                raise OSError(errno.EIO, "a file of the input cache is shorter than it was")
            position += count


def _warn(what: str, error: OSError) -> None:
    log.warning("the input cache could not be %s: %s", what, error.strerror)
