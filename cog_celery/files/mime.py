"""Media types by file name and back, the same on every machine and every Python.

It must not know what a file is for; it never looks into one.
"""

from __future__ import annotations

import mimetypes
from typing import Final

DEFAULT: Final = "application/octet-stream"

_ADDED: Final = {
    ".avif": "image/avif",
    ".flac": "audio/flac",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".heic": "image/heic",
    ".jsonl": "application/jsonl",
    ".m4a": "audio/mp4",
    ".md": "text/markdown",
    ".mkv": "video/x-matroska",
    ".obj": "model/obj",
    ".ogg": "audio/ogg",
    ".parquet": "application/vnd.apache.parquet",
    ".ply": "model/ply",
    ".safetensors": DEFAULT,
    ".stl": "model/stl",
    ".usdz": "model/vnd.usdz+zip",
    ".wav": "audio/wav",
    ".webp": "image/webp",
    ".yaml": "application/yaml",
}

_EXTENSIONS: Final = {
    DEFAULT: ".bin",
    "application/x-zip-compressed": ".zip",
    "audio/mp3": ".mp3",
    "audio/mpeg": ".mp3",
    "audio/vnd.wave": ".wav",
    "audio/wave": ".wav",
    "audio/x-flac": ".flac",
    "audio/x-m4a": ".m4a",
    "audio/x-wav": ".wav",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "text/plain": ".txt",
    "video/mp4": ".mp4",
}
"""Where Python's table has no answer, or one that differs between its versions."""

_ENCODED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}

# An instance knows Python's own table only; the module's functions read the machine's mime.types as well.
_types = mimetypes.MimeTypes()
for _extension, _type in _ADDED.items():
    _types.add_type(_type, _extension)


def type_of(name: str) -> str:
    """The media type of a file by its name; of something compressed (`.tar.gz`), that of the compression."""
    # "./": a name that begins with `data:` would be read as a URL.
    kind, encoding = _types.guess_type("./" + name)
    if encoding is not None:
        return _ENCODED.get(encoding, DEFAULT)
    return kind or DEFAULT


def extension_of(kind: str) -> str:
    """The usual extension of a media type, with its dot; empty when there is none."""
    kind = kind.strip().lower()
    return _EXTENSIONS.get(kind) or _types.guess_extension(kind) or ""
