"""What cog.yaml's `build` asks for: the Python and its packages, and what is the image's business.

It must not install anything. cog.yaml is hostile: whatever is in it is read as text, or refused with its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from cog_celery.errors import UsageError
from cog_celery.models.interpreters import NEWEST, OLDEST, Version

FILE: Final = "cog.yaml"
MAX_FILE: Final = 1 << 20
"""Bytes of cog.yaml, and of a file of requirements."""
MAX_FILES: Final = 100
"""Files of requirements that include each other."""
TO_THE_IMAGE: Final = ("system_packages", "pre_install", "run", "gpu", "cuda", "cudnn")

_NOTHING: Final = ("", "~", "null", "Null", "NULL")
_TRUE: Final = ("true", "yes", "on")
_VERSION: Final = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_INCLUDE: Final = re.compile(r"(?:-[rc]\s*|--(?:requirement|constraint)(?:\s+|\s*=\s*))(\S.*)")
_FILES: Final = (".whl", ".zip", ".tar.gz")


class Build(msgspec.Struct, frozen=True):
    """`requirements` is the path of a file in the model's folder; `image` names what is left to the image."""

    folder: Path
    version: Version | None = None
    packages: tuple[str, ...] = ()
    requirements: Path | None = None
    image: tuple[str, ...] = ()

    @property
    def wants_packages(self) -> bool:
        """Whether there is anything to install."""
        return bool(self.packages or self.requirements)

    @property
    def python(self) -> Version:
        """The version asked for, two numbers or three; ours when none is."""
        return self.version or sys.version_info[:2]

    def digest(self) -> str:
        """A name for what is to be installed: the same for the same. Raises UsageError for a file that is not there."""
        texts = ["\n".join(self.packages), *(text for _, text in self._files())]
        content: list[object] = [1, self.python, sysconfig.get_platform(), self.packages, texts]
        if any(_is_local(line) for text in texts for line in text.splitlines()):
            content.append(str(self.folder))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]

    def _files(self) -> Iterator[tuple[Path, str]]:
        """The files of requirements, and what they include, each once."""
        waiting = [(self.requirements, f"{FILE}: build.python_requirements")] if self.requirements else []
        seen: set[Path] = set()
        while waiting:
            path, named_by = waiting.pop(0)
            if path in seen:
                continue
            seen.add(path)
            if len(seen) > MAX_FILES:
                raise UsageError(f"{named_by}: more than {MAX_FILES} files include each other")
            text = read_text(path, named_by)
            yield path, text
            waiting += [(other, str(path)) for other in _includes(path, text)]


def read_build(folder: Path) -> Build:
    """What the cog.yaml in the folder asks for. Raises UsageError that names the file, and the line or the key."""
    path = folder / FILE
    try:
        # With this loader every scalar stays the text that it is, so that 3.10 is not 3.1, and no tag makes an object.
        document: Any = yaml.load(read_text(path, str(folder)), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UsageError(f"{path}: its brackets are too deep") from None
    if not isinstance(document, dict):
        raise UsageError(f'{path}: keys are needed, like predict: "predict.py:Predictor"')
    build = document.get("build")
    if build is None or (isinstance(build, str) and build in _NOTHING):
        return Build(folder)
    if not isinstance(build, dict):
        raise UsageError(f"{path}: build: keys are needed below it, like python_version")
    build = _merged(build)
    requirements = _text(path, build, "python_requirements")
    return Build(
        folder,
        _version(path, build),
        _packages(path, build),
        folder / requirements if requirements else None,
        tuple(_left_to_the_image(build)),
    )


def _merged(build: dict[Any, Any]) -> dict[Any, Any]:
    """The keys of what it takes over by `<<: *anchor`, where it has none of its own."""
    taken = build.get("<<", [])
    for other in taken if isinstance(taken, list) else [taken]:
        if isinstance(other, dict):
            build = {**other, **build}
    return build


def _version(path: Path, build: dict[Any, Any]) -> Version | None:
    text = _text(path, build, "python_version")
    if not text:
        return None
    match = _VERSION.fullmatch(text)
    if match is None:
        raise UsageError(f'{path}: build.python_version is {text!r}: two numbers are needed, like "3.11", or three')
    version = tuple(int(number) for number in match.groups() if number is not None)
    if not OLDEST <= version[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, limit)) for limit in (OLDEST, NEWEST))
        raise UsageError(f"{path}: build.python_version is {text}: a model runs in Python {oldest} to {newest}")
    return version


def _packages(path: Path, build: dict[Any, Any]) -> tuple[str, ...]:
    given = build.get("python_packages", [])
    if isinstance(given, str) and given in _NOTHING:
        return ()
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise UsageError(f"{path}: build.python_packages: a list of requirements is needed, like - numpy==2.1.0")
    for item in given:
        if _CONTROL.search(item):
            raise UsageError(f"{path}: build.python_packages: {item[:80]!r} is more than a line of text")
    return tuple(item.strip() for item in given if item.strip())


def _text(path: Path, build: dict[Any, Any], key: str) -> str:
    value = build.get(key, "")
    if not isinstance(value, str) or _CONTROL.search(value):
        raise UsageError(f"{path}: build.{key}: text on one line is needed")
    return "" if value in _NOTHING else value


def _left_to_the_image(build: dict[Any, Any]) -> Iterator[str]:
    for key in TO_THE_IMAGE:
        value = build.get(key)
        if isinstance(value, list) and value:
            words = [item for item in value if isinstance(item, str)]
            yield f"{key} ({', '.join(words)})" if key == "system_packages" and words else key
        elif key == "gpu":
            if isinstance(value, str) and value.lower() in _TRUE:
                yield key
        elif isinstance(value, str) and value not in _NOTHING:
            yield f"{key} {value}"


def _is_local(line: str) -> bool:
    """Whether it names what lies in the model's folder, and is another thing in another folder."""
    line = line.strip()
    word = line.split(maxsplit=1)[0] if line else ""
    if word.startswith(("-e", "-f", "--editable", "--find-links", ".", "/", "~")) or "file:" in line:
        return True
    return "://" not in line and not word.startswith("#") and ("/" in word or any(end in word for end in _FILES))


def _includes(path: Path, text: str) -> Iterator[Path]:
    """The files that a file of requirements names by -r and -c, but for those that only pip can find."""
    for line in text.replace("\\\n", "").splitlines():
        match = _INCLUDE.match(line.strip())
        if match is None:
            continue
        name = re.split(r"\s#", match[1], maxsplit=1)[0].strip().strip("\"'")
        if "://" not in name and "${" not in name and not name.startswith("file:"):
            yield Path(os.path.normpath(path.parent / name))


def read_text(path: Path, named_by: str) -> str:
    """A small file that `named_by` names. Raises UsageError."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}, which {named_by} names, is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise UsageError(f"{path}, which {named_by} names: {reason}") from None
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} has more than {MAX_FILE >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8") from None
