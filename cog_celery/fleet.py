"""The fleet file: which queues there are, what each was told, and which of them only send requests on to others.

It must not know what a setting does, nor reach a server. What a process was told by flags and variables wins over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import yaml

from cog_celery.errors import UsageError
from cog_celery.models.build import read_text
from cog_celery.settings import MAX_NAME_BYTES, OPTION, OPTIONS, PREFIX, Given, Settings, nearest, parse_queue

OF_A_PROCESS: Final = frozenset(
    (
        *("fleet", "queues", "redis_url", "broker_url", "name", "heartbeat_file", "metrics_port", "remote_control"),
        *("log_level", "log_format", "input_upload_url"),
    )
)
"""Settings that are a process's, whatever queue it serves."""
KEYS: Final = {"model" if option.name == "model_dir" else option.name for option in OPTIONS} - OF_A_PROCESS
OF_A_FRONT: Final = frozenset(
    (
        *("dialect", "lease", "foreign_lease", "max_attempts", "priority", "create_group", "max_length"),
        *("response_prefix", "response_ttl", "max_request_bytes", "drain_timeout"),
    )
)
"""What a queue without slots can be told."""
MOST_QUEUES: Final = 10_000
_NOTHING: Final = ("", "~", "null", "Null", "NULL")


class Front(msgspec.Struct, frozen=True):
    """A queue without slots. `versions`: the queue of each version that a request may name; `default`: the version of
    requests that name none, None when they are refused.
    """

    versions: Mapping[str, str]
    default: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """What a bridge does for one queue."""

    settings: Settings
    front: Front | None = None


class Fleet(msgspec.Struct, frozen=True):
    """The content of a fleet file: by queue, what it was told, and the fronts among them."""

    told: Mapping[str, Mapping[str, Given]]
    fronts: Mapping[str, Front]


def load(flags: Mapping[str, object], env: Mapping[str, str]) -> Settings:
    """A worker's Settings: as Settings.load(), with what the fleet file says of its queue. Raises UsageError."""
    settings = Settings.load(flags, env)
    if settings.fleet is None or len(settings.queues) != 1:
        return settings
    fleet = read(Path(settings.fleet))
    _known(settings.queues, fleet, settings.fleet)
    if front := fleet.fronts.get(settings.queue):
        named = ", ".join(dict.fromkeys(front.versions.values()))
        raise UsageError(f"{settings.fleet}: {settings.queue} has versions and no slots: name a queue of one, {named}")
    return _of_queue(settings.queue, fleet, flags, env)


def plans(flags: Mapping[str, object], env: Mapping[str, str]) -> tuple[Settings, list[Plan]]:
    """A bridge's Settings, and what it does for each of its queues: those that it was told, else all of its fleet file.

    Raises UsageError.
    """
    settings = Settings.load(flags, env)
    if settings.fleet is None:
        settings = settings.for_bridge()
        return settings, [Plan(settings.with_queue(queue)) for queue in settings.queues]
    fleet = read(Path(settings.fleet))
    _known(settings.queues, fleet, settings.fleet)
    queues = settings.queues or tuple(fleet.told)
    settings = msgspec.structs.replace(settings, queues=queues)
    return settings, [Plan(_of_queue(queue, fleet, flags, env), fleet.fronts.get(queue)) for queue in queues]


def _of_queue(queue: str, fleet: Fleet, flags: Mapping[str, object], env: Mapping[str, str]) -> Settings:
    return Settings.load({**flags, "queues": (queue,)}, env, fleet.told[queue])


def _known(queues: Iterable[str], fleet: Fleet, path: str) -> None:
    for queue in queues:
        if queue not in fleet.told:
            raise UsageError(f"{path} has no queue {queue!r}{nearest(queue, fleet.told)}")


def read(path: Path) -> Fleet:
    """A fleet file. Raises UsageError that names file and line, and the nearest right word."""
    try:
        return _Reader(path).fleet()
    except RecursionError:
        raise UsageError(f"{path}: an alias in it names what it is in itself") from None


class _Reader:
    """Every scalar stays the text that it is, as in a variable: `3.10` is not 3.1, and `yes` not yet a switch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[int, tuple[yaml.Node, dict[str, tuple[yaml.Node, yaml.Node]]]] = {}
        """Mappings that were read, by identity: an alias of an alias may name one a billion times."""

    def fleet(self) -> Fleet:
        top = self._mapping(self._document(), "the file", "queues")
        for key, (at, _) in top.items():
            if key not in ("queues", "defaults"):
                self._refuse(at, f"unknown key {key!r}{nearest(key, ('queues', 'defaults'))}")
        if "queues" not in top:
            raise UsageError(f"{self._path}: names no queues: `queues:` is needed, with a queue's name below it")
        defaults: dict[str, Given] = {}
        if "defaults" in top:
            defaults = self._settings(self._mapping(top["defaults"][1], "defaults", "dialect"), "defaults", KEYS)
        queues = self._mapping(top["queues"][1], "queues", "hello")
        if len(queues) > MOST_QUEUES:
            raise UsageError(f"{self._path}: more than {MOST_QUEUES} queues")
        told: dict[str, Mapping[str, Given]] = {}
        fronts: dict[str, Front] = {}
        places = {name: at for name, (at, _) in queues.items()}
        for name, (at, node) in queues.items():
            try:
                parse_queue(name)
            except ValueError as error:
                self._refuse(at, f"queues: {name[:MAX_NAME_BYTES]!r}: {error}")
            below = self._mapping(node, f"queues.{name}", "model", empty=True)
            if "versions" in below or "default" in below:
                fronts[name] = self._front(below, f"queues.{name}", at)
                own = {key: value for key, value in below.items() if key not in ("versions", "default")}
                fit = {key: given for key, given in defaults.items() if key in OF_A_FRONT}
                told[name] = fit | self._settings(own, f"queues.{name}", OF_A_FRONT)
            else:
                told[name] = _replaced(defaults, self._settings(below, f"queues.{name}", KEYS))
        self._check(told, fronts, places)
        return Fleet(told, fronts)

    def _check(self, told: Mapping[str, Mapping[str, Given]], fronts: Mapping[str, Front], places: Any) -> None:
        """What each queue was told is right by itself, and fits to the others."""
        settings = {name: Settings.load({"queues": (name,)}, {}, given) for name, given in told.items()}
        for name in told:
            base = name.removesuffix(".high")
            if base != name and base in settings and settings[base].priority:
                self._refuse(
                    places[name], f"queues.{name} is the lane of {base}, which has `priority`: name it otherwise"
                )
        for name, front in fronts.items():
            for version, target in front.versions.items():
                at, where = places[name], f"queues.{name}.versions.{version}"
                if target not in told:
                    self._refuse(at, f"{where}: there is no queue {target!r}{nearest(target, told)}")
                if target in fronts:
                    self._refuse(at, f"{where}: {target} has versions itself; name a queue that has slots")
                if settings[name].priority and not settings[target].priority:
                    self._refuse(at, f"{where}: {target} needs `priority: true`, as {name} has a lane")
                answers = [settings[queue].dialect or "cog-0.4" for queue in (name, target)]
                if answers[0] != answers[1]:
                    told_twice = f"{name} answers in {answers[0]} and {target} in {answers[1]}"
                    self._refuse(at, f"{where}: {told_twice}: give them the same `dialect`")

    def _front(self, below: Mapping[str, tuple[yaml.Node, yaml.Node]], where: str, at: yaml.Node) -> Front:
        if "versions" not in below:
            self._refuse(at, f"{where}: `default` needs `versions`")
        named = self._mapping(below["versions"][1], f"{where}.versions", "v1")
        versions = {}
        for version, (place, node) in named.items():
            target = self._text(node)
            if not target or len(version) > MAX_NAME_BYTES:
                self._refuse(place, f"{where}.versions: a version and the name of its queue are needed")
            versions[version] = target
        default = self._text(below["default"][1]) if "default" in below else None
        if default is not None and default not in versions:
            self._refuse(
                below["default"][0], f"{where}.default: there is no version {default!r}{nearest(default, versions)}"
            )
        return Front(versions, default)

    def _settings(
        self, below: Mapping[str, tuple[yaml.Node, yaml.Node]], where: str, keys: Iterable[str]
    ) -> dict[str, Given]:
        told = {}
        for key, (at, node) in below.items():
            name = key.replace("-", "_")
            if name not in keys:
                self._refuse(at, f"{where}: {self._why_not(key, name, keys)}")
            value: object = self._text(node)
            if isinstance(node, yaml.SequenceNode):
                if name in OPTION and not OPTION[name].kind.many:
                    self._refuse(node, f"{where}.{key}: one value is needed, not a list")
                value = [self._text(item) or "" for item in node.value]
            if value is None or value == []:
                continue
            field = "model_dir" if name == "model" else name
            if field == "model_dir" or (field == "python" and os.sep in str(value)):
                value = os.path.join(self._path.parent, os.path.expanduser(str(value)))
            if OPTION[field].kind.many and isinstance(value, str):
                value = [part.strip() for part in value.split(",") if part.strip()]
            told[field] = Given(f"{self._path}:{node.start_mark.line + 1}: {where}.{key}", value)
        return told

    def _why_not(self, key: str, name: str, keys: Iterable[str]) -> str:
        if name in OF_A_PROCESS:
            return f"{key!r} belongs to a process, not to a queue: give {OPTION[name].flag} or {PREFIX}{name.upper()}"
        if name in KEYS:
            return f"a queue with versions has no slots, and {key!r} is for those: put it to the queues of its versions"
        return f"unknown setting {key!r}{nearest(name, (*keys, 'versions', 'default'))}"

    # -- YAML

    def _document(self) -> yaml.Node | None:
        text = read_text(self._path, "--fleet")
        try:
            node: yaml.Node | None = yaml.compose(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"{self._path}{line}: not YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise UsageError(f"{self._path}: not YAML: {(str(error).splitlines() or ['too deep'])[0]}") from None
        return node

    def _mapping(
        self, node: yaml.Node | None, where: str, example: str, *, empty: bool = False
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys, each with its node and that of its value."""
        nothing = isinstance(node, yaml.ScalarNode) and node.value in _NOTHING
        if empty and (nothing or (isinstance(node, yaml.MappingNode) and not node.value)):
            return {}
        if not isinstance(node, yaml.MappingNode) or not node.value:
            line = f":{node.start_mark.line + 1}" if node is not None else ""
            raise UsageError(f"{self._path}{line}: {where}: keys are needed, like `{example}:`")
        if id(node) in self._known:
            return self._known[id(node)][1]
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = self._text(key)
            if not name:
                self._refuse(key, f"{where}: a key must be a text")
            if name == "<<":
                for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self._mapping(one, f"{where}.<<", example) | merged
            elif name in found:
                self._refuse(key, f"{where}: {name!r} is there twice")
            else:
                found[name] = (key, value)
        self._known[id(node)] = node, merged | found
        return merged | found

    def _text(self, node: yaml.Node) -> str | None:
        """A scalar's text, None for nothing."""
        if isinstance(node, yaml.ScalarNode):
            return None if node.value in _NOTHING and node.style is None else str(node.value)
        if not isinstance(node, yaml.SequenceNode):
            self._refuse(node, "a text or a list of texts is needed here")
        return ""

    def _refuse(self, node: yaml.Node, why: str) -> NoReturn:
        raise UsageError(f"{self._path}:{node.start_mark.line + 1}: {why}")


def _replaced(defaults: Mapping[str, Given], told: Mapping[str, Given]) -> dict[str, Given]:
    """What a queue was told over the defaults; of settings that exclude each other, its own."""
    fit = dict(defaults)
    for one, other in (("gpus", "slots"), ("slots", "gpus"), ("slots_per_gpu", "gpus_per_slot")):
        if one in told:
            fit.pop(other, None)
    return fit | dict(told)
