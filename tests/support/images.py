"""Builds the targets of a Dockerfile into folders: its COPYs and RUNs are carried out, in sandboxes of bubblewrap.

What stands in for the images it starts from is this machine: its /usr, and an interpreter of its own where an image has
one. It must not know what is built; commands that need another network than the registries' are replaced by who calls.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.containers import Mount, sandbox

KEPT = ("build", "home", "opt", "root", "src")
"""Folders at the top of an image that a Dockerfile's commands may write to."""
PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Image:
    """What an engine knows of an image. `folder` has what its layers have put there, `base` what it started from."""

    folder: Path
    base: Sequence[Mount] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0"
    workdir: str = "/"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    health: Sequence[str] = ()

    @property
    def uid(self) -> int:
        return int(self.user.split(":")[0])

    @property
    def home(self) -> str:
        """As an engine finds it for a user: in the image's variables, else in its /etc/passwd."""
        lines = (line.split(":") for line in (self.folder / "etc/passwd").read_text().splitlines())
        return self.env.get("HOME") or next((line[5] for line in lines if int(line[2]) == self.uid), "/")

    def variables(self) -> dict[str, str]:
        return {"HOME": self.home, **self.env}

    def mounts(self, *, writable: bool = False) -> list[Mount]:
        """All of its files, those of its layers over those of its base."""
        there = [name for name in KEPT if (self.folder / name).is_dir()]
        tops = [Mount(f"/{name}", self.folder / name, writable) for name in there]
        etc = self.folder / "etc"
        files = sorted(path for path in etc.rglob("*") if path.is_file())
        return [*tops, *self.base, *(Mount(f"/etc/{file.relative_to(etc)}", file, writable) for file in files)]


class Builder:
    """Builds from one Dockerfile. `bases` says what an image's name stands for; `replaced` what is run for a RUN that
    begins with these words; `tools` are mounts that RUNs alone have, `env` their variables, `path` before their PATH.
    """

    def __init__(
        self,
        dockerfile: Path,
        context: Path,
        folder: Path,
        *,
        bases: Mapping[str, Image],
        replaced: Mapping[str, str] | None = None,
        tools: Sequence[Mount] = (),
        env: Mapping[str, str] | None = None,
        path: str = "",
    ) -> None:
        self._steps = instructions(dockerfile.read_text())
        self._context = context
        self._folder = folder
        self._bases = bases
        self._replaced = replaced or {}
        self._tools = tools
        self._env = env or {}
        self._path = path
        self._built: dict[str, Image] = {}

    def build(self, target: str, **arguments: str) -> Image:
        """The image of a target, with these build arguments; stages it copies from are built once."""
        outer: dict[str, str] = {}
        base, steps = "", []
        for name, text in self._steps:
            if name == "FROM":
                first, *_, last = expand(text, outer).split()
                if base:
                    break
                base = first if last == target else ""
            elif base:
                steps.append((name, text))
            elif name == "ARG":
                self._argument(text, arguments, outer)
        assert base, f"there is no target {target}"
        return self._carry_out(self._start(base, target), steps, arguments)

    def _argument(self, text: str, given: Mapping[str, str], into: dict[str, str]) -> None:
        name, _, default = text.partition("=")
        into[name] = given.get(name, expand(default.strip("\"'"), into))

    def _start(self, base: str, target: str) -> Image:
        start = self._bases[base] if base in self._bases else self._built[base]
        folder = self._folder / target
        if start.folder.is_dir():
            _copy(start.folder, folder, shared=True)
        for name in (*KEPT, "etc"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        # A file of its own: it is appended to.
        users = folder / "etc/passwd"
        text = users.read_text() if users.exists() else "root:x:0:0:root:/root:/bin/sh\n"
        users.unlink(missing_ok=True)
        users.write_text(text)
        for mount in start.base:  # where there is only reading later
            if mount.path.split("/")[1] in KEPT:
                (folder / mount.path.strip("/")).mkdir(parents=True, exist_ok=True)
        return replace(start, folder=folder)

    def _carry_out(self, image: Image, steps: Sequence[tuple[str, str]], given: Mapping[str, str]) -> Image:
        arguments: dict[str, str] = {}
        for name, text in steps:
            known = {**arguments, **image.env}
            if name == "ARG":
                self._argument(text, given, arguments)
            elif name == "ENV":
                env = dict(image.env)
                for pair in shlex.split(text):
                    key, _, value = pair.partition("=")
                    env[key] = expand(value, known)
                image = replace(image, env=env)
            elif name == "COPY":
                self._copy(image, shlex.split(expand(text, known)))
            elif name == "RUN":
                self._run(image, text, arguments)
            elif name == "WORKDIR":
                (image.folder / text.strip("/")).mkdir(parents=True, exist_ok=True)
                image = replace(image, workdir=text)
            elif name == "USER":
                image = replace(image, user=expand(text, known))
            elif name == "ENTRYPOINT":  # which takes back the command of the image below
                image = replace(image, entrypoint=json.loads(text), command=())
            elif name == "CMD":
                image = replace(image, command=json.loads(text))
            elif name == "HEALTHCHECK":
                image = replace(image, health=json.loads(text[text.index("CMD") + 3 :]))
            else:
                assert name == "LABEL", f"{name} is not understood"
        return image

    def _copy(self, image: Image, words: list[str]) -> None:
        flags = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--"))
        *sources, last = [word for word in words if not word.startswith("--")]
        target = image.folder / os.path.join(image.workdir, last).strip("/")
        if "from" in flags:
            (source,) = sources
            stage = flags["from"]
            if stage not in self._built:
                self._built[stage] = self.build(stage)
            there = self._built[stage].folder / source.strip("/")
            if not there.exists():  # of the image that it was made from
                there = Path(source)
            paths = [there]
        else:
            paths = [self._context / source for source in sources]
            for path in paths:
                assert included(self._context, path), f"{path} is left out by .dockerignore, or not there"
        for path in paths:
            into = target / path.name if last.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, into, shared="from" in flags)
            if "chmod" in flags:
                for file in [into, *into.rglob("*")]:
                    file.chmod(int(flags["chmod"], 8))

    def _run(self, image: Image, text: str, arguments: Mapping[str, str]) -> None:
        for words, instead in self._replaced.items():
            if text.startswith(words):
                text = instead
        own = [Mount(path, Path(path)) for path in ("/etc",)]
        mounts = [*own, *image.mounts(writable=True), *self._tools]
        inner = sandbox(mounts, ["/tmp"], user=0, workdir=image.workdir, hostname=None, init=True)
        env = {"HOME": "/root", **arguments, **image.env, **self._env}
        env["PATH"] = f"{self._path}:{env['PATH']}"
        done = subprocess.run(
            [*inner, "/bin/sh", "-c", text],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if done.returncode != 0:
            raise BuildError(text, done.returncode, done.stdout)


class BuildError(Exception):
    """A RUN failed."""

    def __init__(self, command: str, status: int, output: str) -> None:
        super().__init__(f"{command} ended with {status}:\n{output[-4000:]}")
        self.output = output


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its words on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, _, rest in found]


def expand(text: str, known: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: known.get(found[1] or found[2], ""), text)


def included(context: Path, path: Path) -> bool:
    """Whether .dockerignore, of which each line lets in one path, lets this one in."""
    lines = (context / ".dockerignore").read_text().splitlines() if (context / ".dockerignore").exists() else ["!"]
    let_in = [context / line[1:] for line in lines if line.startswith("!")]
    return path.exists() and any(one == path or one in path.parents for one in let_in)


def _copy(source: Path, target: Path, *, shared: bool) -> None:
    """`shared`: by hard links, since what changes a file of an image makes a new one of it."""
    copy = _link if shared else shutil.copy2
    if not source.is_dir():
        copy(str(source), str(target))
        return
    ignored = None if shared else shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target, symlinks=True, copy_function=copy, dirs_exist_ok=True, ignore=ignored)
    if shared:  # folders have their owners
        for folder, _, _ in os.walk(source):
            about = os.stat(folder)
            os.chown(target / Path(folder).relative_to(source), about.st_uid, about.st_gid)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
