"""Reads compose.yaml as `docker compose` does, and makes of its services what containers.py runs.

It must not know what the services are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.containers import Mount, Spec
from tests.support.images import Image

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def config(
    root: Path,
    variables: Mapping[str, str],
    *profiles: str,
    env_file: Path | None = None,
    override: Path | None = None,
) -> tuple[dict[str, Any] | None, str]:
    """The whole configuration with these variables and nothing of this process's own, and what was said of errors.

    `env_file`: instead of the .env of a developer, which is not looked at. `override`: a second file over the first.
    """
    program = shutil.which("docker-compose", path=os.path.dirname(sys.executable))
    assert program is not None, "docker-compose is missing: make install"
    command = [program, "--env-file", str(env_file or "/dev/null"), "--file", str(root / "compose.yaml")]
    if override is not None:
        command += ["--file", str(override)]
    for profile in profiles:
        command += ["--profile", profile]
    command += ["config", "--format", "json"]
    done = subprocess.run(command, env=dict(variables), cwd=root, capture_output=True, text=True, timeout=30)
    return (json.loads(done.stdout) if done.returncode == 0 else None), done.stderr


def seconds(text: str) -> float:
    """A duration as compose writes it: `1m30s`."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text))


def spec(service: Mapping[str, Any], image: Image, volumes: Path, *, name: str, alias: str) -> Spec:
    """One replica of a service, with that image and, below `volumes`, its named volumes."""
    mounts = image.mounts(writable=not service.get("read_only", False))
    uid = int(str(service.get("user", image.user)).split(":")[0])
    for volume in service.get("volumes", []):
        source = Path(volume["source"])
        if volume["type"] == "volume":
            source = volumes / volume["source"]
            source.mkdir(exist_ok=True)
            os.chown(source, uid, uid)  # a new volume takes after the folder of the image
        mounts.append(Mount(volume["target"], source, not volume.get("read_only", False)))
    test = service.get("healthcheck", {}).get("test") or ["CMD", *image.health]
    assert test[0] == "CMD", f"{name}: a health check that is not a plain command"
    given = service.get("environment") or {}
    entrypoint = service.get("entrypoint") or image.entrypoint
    return Spec(
        name=name,
        aliases=() if name == alias else (alias,),
        command=[*entrypoint, *(service.get("command") or image.command)],
        env={**image.variables(), **{key: value for key, value in given.items() if value is not None}},
        mounts=mounts,
        tmpfs=[text.split(":")[0] for text in service.get("tmpfs", [])],
        user=uid,
        workdir=service.get("working_dir", image.workdir),
        init=bool(service.get("init")),
        networks=sorted(service.get("networks") or ["default"]),
        probes={"health": test[1:]} if len(test) > 1 else {},
        grace=seconds(service.get("stop_grace_period", "10s")),
    )
