"""Looks whether what a fleet stands on is fit for it: Redis, broker, GPUs, the model's interpreter.

It must not change anything, nor know how a fleet works: what it needs of each is written here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cog_celery import fleet
from cog_celery.delivery.servers import why
from cog_celery.errors import CogCeleryError, ServerError, UsageError
from cog_celery.gpus.assigning import shares
from cog_celery.gpus.finding import find
from cog_celery.models import interpreters
from cog_celery.producer.clients import connected
from cog_celery.server_urls import parse_broker
from cog_celery.settings import Settings, masked_url

TIMEOUT: Final = 5.0
NEEDED_COMMANDS: Final = ("XAUTOCLAIM", "BLMOVE", "LPOS", "EVALSHA")
"""The youngest are of Redis 6.2. Versions tell nothing: every Valkey says that it is Redis 7.2.4."""
BROKEN_GPU: Final = "its slot is out until it answers: look at dmesg, reset it or start the machine again"
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Finding(msgspec.Struct, frozen=True):
    """What was looked at, what was found, whether that will do, and what to do if not."""

    subject: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def check(settings: Settings, *, python_named: bool) -> list[Finding]:
    """All findings, in the order in which a person would look. An unreachable server is a finding."""
    findings = [_fleet(settings.fleet)] if settings.fleet else []
    findings += _redis(settings.redis_url)
    findings.append(_broker(settings))
    findings.append(_gpus(settings))
    if python_named:
        findings.append(_python(settings.python))
    return findings


def _fleet(path: str) -> Finding:
    try:
        known = fleet.read(Path(path))
    except UsageError as error:
        return Finding("fleet", "fail", str(error), "mend the file")
    fronts = f", {len(known.fronts)} of them with versions" if known.fronts else ""
    return Finding("fleet", "ok", f"{path}: {len(known.told)} queues{fronts}")


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON array."""
    return json.dumps(msgspec.to_builtins(findings), indent=2)


def print_table(findings: list[Finding]) -> None:
    """The findings for a person, on standard output."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(verdict, finding.subject, Text(finding.found), Text(finding.advice))
    Console(highlight=False).print(table)


def _redis(url: str) -> Iterator[Finding]:
    try:
        with connected(url, timeout=TIMEOUT) as client:
            began = time.perf_counter()
            client.ping()
            took = time.perf_counter() - began
            info = _info(client)
            yield _server(info, masked_url(url), took)
            yield _commands(client)
            yield from _topology(info)
            yield _memory(info)
            yield _persistence(info)
            yield _notifications(client)
    except ServerError as error:
        yield Finding("redis", "fail", str(error), "start it, or name another with --redis-url")


def _info(client: redis.Redis) -> Mapping[str, Any]:
    info: Mapping[str, Any] = client.info()
    return info


def _server(info: Mapping[str, Any], shown: str, took: float) -> Finding:
    if "valkey_version" in info:
        product = f"Valkey {info['valkey_version']}"
    else:
        product = f"{str(info.get('server_name', 'redis')).capitalize()} {info.get('redis_version', '?')}"
    return Finding("redis", "ok", f"{product} at {shown}, answers in {took * 1000:.1f} ms")


def _commands(client: redis.Redis) -> Finding:
    try:
        answers = client.execute_command("COMMAND INFO", *NEEDED_COMMANDS)
        known = {bytes(answer[0]).decode().upper() for answer in answers if answer}
        missing = [name for name in NEEDED_COMMANDS if name not in known]
        if missing:
            advice = "use Redis 6.2 or later, or any Valkey"
            return Finding("commands", "fail", f"the server does not know {', '.join(missing)}", advice)
        client.eval("return redis.call('EXISTS', KEYS[1])", 1, "cog-celery:check")
    except redis.ResponseError as error:
        advice = "let the user of the URL run scripts and commands on streams, lists and strings (ACL SETUSER)"
        return Finding("commands", "fail", str(error), advice)
    return Finding("commands", "ok", "streams and scripts work")


def _topology(info: Mapping[str, Any]) -> Iterator[Finding]:
    if int(info.get("cluster_enabled", 0)):
        advice = "use a standalone server, or one with replicas and Sentinel: a commit is one step on one node"
        yield Finding("topology", "fail", "this is a node of a Redis Cluster", advice)
    elif info.get("role") not in (None, "master"):
        yield Finding(
            "topology", "fail", "this is a replica, which cannot be written to", "name its primary, or its sentinels"
        )
    else:
        replicas = int(info.get("connected_slaves", 0))
        yield Finding("topology", "ok", f"one node, {replicas} replica{'' if replicas == 1 else 's'}")


def _memory(info: Mapping[str, Any]) -> Finding:
    limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "unknown"))
    found = f"maxmemory-policy {policy}, {'no limit' if not limit else f'limit {limit >> 20} MiB'}"
    advice = "CONFIG SET maxmemory-policy noeviction"
    if policy == "noeviction":
        return Finding("memory", "ok", found)
    if limit and policy.startswith("allkeys"):
        return Finding("memory", "fail", f"{found}: requests and responses would be evicted", advice)
    if limit:
        return Finding(
            "memory", "warn", f"{found}: keys that expire, those of living workers too, may go early", advice
        )
    return Finding("memory", "warn", f"{found}: harmless until there is a limit", advice)


def _persistence(info: Mapping[str, Any]) -> Finding:
    advice = "look into the server's log and at its disk: it may refuse all writes"
    for field in ("rdb_last_bgsave_status", "aof_last_write_status"):
        if info.get(field, "ok") != "ok":
            return Finding("persistence", "fail", f"the server cannot write to its disk ({field})", advice)
    if int(info.get("aof_enabled", 0)):
        return Finding("persistence", "ok", "append-only file")
    advice = "CONFIG SET appendonly yes, and the same in the server's configuration"
    return Finding("persistence", "warn", "no append-only file: a crash loses the latest requests, or all", advice)


def _notifications(client: redis.Redis) -> Finding:
    try:
        answer = client.config_get("notify-keyspace-events")
    except redis.ResponseError as error:
        advice = "whoever runs the server can tell; without them producers have to poll"
        return Finding("notifications", "warn", f"cannot be asked for ({error})", advice)
    flags = str(next(iter(answer.values()), ""))
    if "K" in flags and ("$" in flags or "A" in flags):
        return Finding("notifications", "ok", f"producers are told of every snapshot (notify-keyspace-events {flags})")
    wanted = flags + "".join(flag for flag in "K$" if flag not in flags)
    found = f"notify-keyspace-events is {flags!r}: producers have to poll for responses"
    return Finding("notifications", "warn", found, f"CONFIG SET notify-keyspace-events {wanted}")


def _broker(settings: Settings) -> Finding:
    if settings.broker_is_redis:
        return Finding("broker", "ok", "the same database as redis, keys under a prefix of their own")
    shown, broker = masked_url(settings.broker_url), parse_broker(settings.broker_url)
    advice = "start it, or look at --broker-url"
    if broker.redis and not broker.url.startswith("redis+socket:"):
        return _redis_broker(settings.broker_url, advice)

    from kombu.connection import Connection

    try:
        tls = dict(broker.tls) if broker.tls is not None else False
        with Connection(broker.url, ssl=tls, connect_timeout=TIMEOUT) as connection:
            # Of what a transport may raise nobody has a list.
            connection.ensure_connection(max_retries=1, timeout=TIMEOUT)
            kind = str(connection.transport.driver_type)
    except Exception as error:
        return Finding("broker", "fail", f"{shown} cannot be reached: {why(error) or type(error).__name__}", advice)
    return Finding("broker", "ok", f"{kind} at {shown}")


def _redis_broker(url: str, advice: str) -> Finding:
    """A Redis that carries tickets alone: what it loses is sent again, so neither persistence nor memory matter."""
    try:
        with connected(url, timeout=TIMEOUT) as client:
            info = _info(client)
    except ServerError as error:
        return Finding("broker", "fail", str(error), advice)
    if info.get("role") not in (None, "master"):
        return Finding("broker", "fail", f"{masked_url(url)} is a replica", "name its primary, or its sentinels")
    if int(info.get("cluster_enabled", 0)):
        return Finding("broker", "fail", f"{masked_url(url)} is a node of a Redis Cluster", "use a standalone server")
    found = _server(info, masked_url(url), 0).found.partition(", answers")[0]
    return Finding("broker", "ok", f"{found}, apart from the queues")


def _gpus(settings: Settings) -> Finding:
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if settings.gpus is not None:
        try:
            given = shares(settings, os.environ)
        except CogCeleryError as error:
            return Finding("gpus", "fail", str(error), "look at --gpus and at the driver")
        for device in (device for share in given for device in share.devices if device.broken is not None):
            return Finding("gpus", "warn", f"GPU {device.label} does not answer: {device.broken}", BROKEN_GPU)
        return Finding("gpus", "ok", f"{len(given)} slots: {', '.join(share.label or 'no GPU' for share in given)}")
    found = find()
    if not found.devices:
        return Finding("gpus", "ok", f"none ({found.why_none}); --slots says how many predictions run at a time")
    hidden = "" if mask is None else f"; CUDA_VISIBLE_DEVICES={mask} shows some of them"
    labels = ", ".join(leaf.label for device in found.devices for leaf in device.leaves)
    return Finding("gpus", "ok", f"{labels}{hidden}; --gpus auto makes a slot of each")


def _python(python: str) -> Finding:
    program = shutil.which(python)
    advice = "name a CPython 3.9 to 3.14 with --python"
    if program is None:
        return Finding("python", "fail", f"{python} is not there, or cannot be executed", advice)
    try:
        name, version = interpreters.ask(program)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Finding("python", "fail", f"{program} does not answer as a Python does: {error}", advice)
    found = f"{name} {'.'.join(str(part) for part in version)} at {program}"
    fit = name == "cpython" and interpreters.OLDEST <= version[:2] <= interpreters.NEWEST
    return Finding("python", "ok", found) if fit else Finding("python", "fail", found, advice)
