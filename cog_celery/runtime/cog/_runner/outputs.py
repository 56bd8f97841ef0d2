"""From what predict() returns or yields to JSON and files.

It must not know where either goes. Files stand as null in the JSON; beside it is the list of their places and paths.
"""

from __future__ import annotations

import enum
import errno
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from ..coder import own_coder
from ..model import BaseModel
from ..types import MASK, Secret
from .depth import MAX_LEVELS, is_too_deep
from .standard import import_standard

COPY_SIZE = 1 << 20
MAX_DEPTH = 200
"""Levels of an output; what is deeper refers to itself, or could not be read by anybody."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


_AS_TEXT = (("uuid", "UUID"), ("ipaddress", "_BaseAddress"), ("ipaddress", "_BaseNetwork"))


class OutputError(Exception):
    """An output that cannot be sent, and what to return instead."""


class StorageError(Exception):
    """There is no room to write an output's file down, which is not the model's fault."""


class _NotPlain(Exception):
    """There is something in it that JSON has no form for."""


def _not_plain(value: Any) -> Any:
    raise _NotPlain


_encode_str: Callable[[str], str] = json.encoder.encode_basestring
# Refuses NaN and whatever is no JSON: then, and only then, the value is walked through in Python.
_encode_plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_not_plain).encode


def to_json(value: Any) -> bytes:
    """JSON of a value that is made of JSON's own types."""
    return _to_bytes(_encode_str(value) if type(value) is str else _encode_plain(value))


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair has no form in UTF-8
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Files:
    """The runner's own folder for outputs that are no files of their own. They are kept until the next prediction."""

    def __init__(self) -> None:
        self._folder: Optional[str] = None
        self._count = 0

    def clear(self) -> None:
        """Remove what earlier predictions left."""
        if self._folder is not None:
            import_standard("shutil").rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def place(self, name: str) -> str:
        """A path of that base name where nothing lies yet. Raises StorageError, OSError."""
        base = os.fsencode(os.path.basename(name)).decode("utf-8", "replace")
        try:
            return os.path.join(self._new_folder(), base if base not in ("", ".", "..") else "file")
        except OSError as error:
            raise _storage_error(error) or error from None

    def _new_folder(self) -> str:
        if self._folder is None:
            # mkdir() follows no link and takes nothing that is there; tempfile would cost a third of our start.
            temporary = os.environ.get("TMPDIR") or "/tmp"
            folder = os.path.join(temporary, f"cog-output-{os.getpid()}-{time.time_ns():x}")
            os.mkdir(folder, 0o700)
            self._folder = folder
        self._count += 1
        folder = os.path.join(self._folder, str(self._count))
        os.mkdir(folder)
        return folder


class Encoder:
    """Encodes outputs. `files` holds what has to be written down first; `reveal`: a Secret is its text, not masked."""

    __slots__ = ("_files", "_reveal")

    def __init__(self, files: Files, reveal: bool = False) -> None:
        self._files = files
        self._reveal = reveal

    def encode(self, value: Any, keep: bool = False) -> tuple[bytes, bytes]:
        """A value's JSON, and the JSON of its list of files, empty when there are none.

        With `keep`, files are copied: the model may overwrite or delete them in its next step. Raises OutputError,
        StorageError.
        """
        if type(value) is str:
            return _to_bytes(_encode_str(value)), b""
        try:
            text = _encode_plain(value)
        except (_NotPlain, TypeError, ValueError, RecursionError):
            pass
        else:
            if is_too_deep(value, text):
                raise OutputError(f"The output is more than {MAX_LEVELS} levels deep.")
            return _to_bytes(text), b""
        found: list[dict[str, Any]] = []
        plain = _Walk(self._files, keep, found, self._reveal).convert(value, ())
        try:
            return _to_bytes(_encode_plain(plain)), to_json(found) if found else b""
        except ValueError as error:  # a whole number with more digits than Python writes
            raise OutputError(f"The output cannot be written as JSON: {error}") from None


class _Walk:
    """One output on its way to JSON's own types."""

    def __init__(self, files: Files, keep: bool, found: list[dict[str, Any]], reveal: bool) -> None:
        self._files = files
        self._keep = keep
        self._found = found
        self._reveal = reveal

    def convert(self, value: Any, at: tuple[Any, ...]) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if len(at) > MAX_DEPTH:
            raise OutputError(f"The output is more than {MAX_DEPTH} levels deep, or contains itself.")
        if isinstance(value, enum.Enum):
            return self.convert(value.value, at)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if value - value == 0 else None  # neither NaN nor an infinity has a form in JSON
        if isinstance(value, Secret):
            return value.get_secret_value() if self._reveal else MASK
        coder = own_coder(type(value))
        if coder is not None:
            return self.convert(coder.encode(value), at)
        if isinstance(value, Mapping):
            return self._convert_items(value.items(), at)
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.convert(item, (*at, index)) for index, item in enumerate(value)]
        if isinstance(value, os.PathLike):
            return self._add_path(os.path.abspath(os.fsdecode(value)), at)
        if isinstance(value, io.IOBase) or (hasattr(value, "read") and hasattr(value, "close")):
            return self._add_file(value, at)
        fields = _fields(value)
        if fields is not None:
            return self._convert_items(fields.items(), at)
        if callable(getattr(value, "tolist", None)):  # numpy's arrays and scalars
            return self.convert(value.tolist(), at)
        if callable(getattr(value, "isoformat", None)):  # date, time, datetime
            return value.isoformat()
        if hasattr(type(value), "__next__"):
            return [self.convert(item, (*at, index)) for index, item in enumerate(value)]
        if isinstance(value, range) or _is(value, "collections", "deque"):
            return list(self.convert(list(value), at))
        # What Cog's HTTP server has a form for besides.
        if _is(value, "decimal", "Decimal"):
            return self.convert(int(value) if value.as_tuple().exponent in range(1000) else float(value), at)
        if _is(value, "datetime", "timedelta"):
            return float(value.total_seconds())
        if any(_is(value, *kind) for kind in _AS_TEXT):
            return str(value)
        raise OutputError(
            f"An output of type {type(value).__name__} cannot be sent: return text, numbers, lists, dicts, "
            "a BaseModel, or cog.Path for a file."
        )

    def _convert_items(self, items: Any, at: tuple[Any, ...]) -> dict[str, Any]:
        return {name: self.convert(item, (*at, name)) for name, item in ((_key(key), item) for key, item in items)}

    def _add_path(self, path: str, at: tuple[Any, ...]) -> None:
        if not os.path.isfile(path):
            raise OutputError(f"The output {path} is not a file: write it before it is returned.")
        if self._keep or _to_bytes(path) != os.fsencode(path):
            path = self._kept(path)  # under a name that has a form in JSON
        self._found.append({"at": list(at), "path": path})

    def _kept(self, path: str) -> str:
        """A copy, which lies under the same rules as what it is a copy of: those the worker applies to all others."""
        from .places import NotToBeGiven, real_place  # few outputs need it, and every start would pay for it

        try:
            real = real_place(path, os.environ.get("TMPDIR"))
        except NotToBeGiven as error:
            raise OutputError(f"The output {path} {error}.") from None
        kept = self._files.place(path)
        try:
            import_standard("shutil").copyfile(real, kept)
        except OSError as error:
            raise _not_copied(error, path) from None
        return kept

    def _add_file(self, file: Any, at: tuple[Any, ...]) -> None:
        name = getattr(file, "name", None)
        if not isinstance(name, (str, bytes, os.PathLike)):  # none, or a bare file descriptor
            name = "file"
        path = self._files.place(os.fsdecode(name))
        try:
            _copy(file, path)
        except (OSError, ValueError) as error:
            raise _not_copied(error, path) from None
        self._found.append({"at": list(at), "path": path})


def _copy(file: Any, path: str) -> None:
    """Write all of an open file's content to a path."""
    if hasattr(file, "flush") and not getattr(file, "closed", False):
        file.flush()
    if getattr(file, "closed", False) or not _readable(file):
        import_standard("shutil").copyfile(file.name, path)
        return
    if not hasattr(file, "seekable") or file.seekable():
        file.seek(0)
    with open(path, "wb") as copy:
        while True:
            piece = file.read(COPY_SIZE)
            if not piece:
                return
            copy.write(piece.encode() if isinstance(piece, str) else piece)


def _not_copied(error: Exception, path: str) -> Exception:
    return _storage_error(error) or OutputError(f"The output file {os.path.basename(path)} cannot be read: {error}")


def _storage_error(error: Exception) -> Optional[StorageError]:
    """What to raise where there is no room; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in NO_ROOM:
        return None
    return StorageError(
        f"An output file could not be stored: {error.strerror}. Make room on the worker's disk for temporary files."
    )


def _readable(file: Any) -> bool:
    readable = getattr(file, "readable", None)
    return bool(readable()) if callable(readable) else True


def _is(value: Any, module: str, name: str) -> bool:
    """Whether it is of that class of a module which whoever made it has imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _key(key: Any) -> str:
    """A key as JSON has it: always text."""
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    return str(key)


def _fields(value: Any) -> Optional[dict[str, Any]]:
    """The fields of a structured value that were set; None for any other value."""
    kind = type(value)
    is_dataclass = hasattr(kind, "__dataclass_fields__")
    if is_dataclass or isinstance(value, BaseModel):
        held = getattr(value, "__dict__", None)
        # Whoever made a dataclass has imported the module.
        names = [f.name for f in sys.modules["dataclasses"].fields(kind)] if is_dataclass else list(held or ())
        if isinstance(value, BaseModel) and held is not None:
            names = [name for name in names if name in held]
        return {name: getattr(value, name) for name in names}
    # pydantic's: 2 has model_fields_set, 1 has __fields_set__. Their own dumps would turn paths into text.
    for attribute in ("model_fields_set", "__fields_set__"):
        named = getattr(value, attribute, None)
        if isinstance(named, set):
            declared = getattr(kind, "model_fields", None) or getattr(kind, "__fields__", {})
            return {name: getattr(value, name) for name in (*declared, *sorted(named - set(declared))) if name in named}
    return None
