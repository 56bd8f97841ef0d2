"""Where packages come from: what pip is configured with, said to uv, which does not read pip's configuration.

It must not know what is installed. Index URLs carry credentials: they travel in the environment, and are never shown.
"""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

PATIENCE: Final = 30.0

# pip's setting, uv's variable for it, and what stands between several values there.
_SETTINGS: Final = (
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", " "),
)
_OWN: Final = ("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_CONFIG_FILE", *(name for _, name, _ in _SETTINGS[:3]))
_SECTIONS: Final = ("global", "install", ":env:")
"""The later ones come before the earlier ones."""


class Indexes(msgspec.Struct, frozen=True):
    """uv's variables, whether it is to ask no index at all, and the names of pip's settings that say so."""

    variables: dict[str, str]
    none: bool = False
    named: tuple[str, ...] = ()


def of_pip(pythons: Iterable[str], environ: Mapping[str, str]) -> Indexes:
    """What the first of these Pythons that has pip says of it; nothing where uv is configured itself."""
    if any(environ.get(name) for name in _OWN) or any(path.is_file() for path in _uv_files(environ)):
        return Indexes({})
    told = next((told for python in pythons if (told := _ask_pip(python, environ)) is not None), {})
    variables = {}
    for key, name, separator in _SETTINGS:
        if key in told and name not in environ:
            variables[name] = separator.join(told[key].split())
    if "UV_INDEX" in variables and "UV_INDEX_STRATEGY" not in environ:
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip does: the best of what all indexes have
    none = told.get("no-index", "").lower() in ("1", "true", "yes", "on", "t", "y")
    named = tuple(key for key, name, _ in _SETTINGS if name in variables) + (("no-index",) if none else ())
    return Indexes(variables, none, named)


def _uv_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """The user's configuration of uv, and the machine's."""
    homes = [environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")]
    for folder in (*homes, *(environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep), "/etc"):
        yield Path(folder) / "uv" / "uv.toml"


def _ask_pip(python: str, environ: Mapping[str, str]) -> dict[str, str] | None:
    """pip's settings by name, as they hold for `pip install`; None without a pip that answers."""
    command = [python, "-I", "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE, cwd="/")
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode != 0:
        return None
    told: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in done.stdout.splitlines():
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in told:
            with suppress(ValueError, SyntaxError):  # of a pip that writes values otherwise
                told[section][key] = str(ast.literal_eval(value))
    return {key: value for section in _SECTIONS for key, value in told[section].items()}
