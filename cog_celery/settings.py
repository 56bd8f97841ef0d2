"""Every setting of a process: one table of options, read once from flags and variables into one frozen Settings.

It must not know what a setting does, nor reach a server: it looks at values, and at the disk for the model and for
certificates alone.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import shutil
import socket
import string
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn, Self
from urllib.parse import urlsplit

import msgspec

from cog_celery import server_urls
from cog_celery.errors import UsageError

PREFIX: Final = "COG_CELERY_"
DEFAULT_REDIS_URL: Final = "redis://localhost:6379/0"
DIALECTS: Final = ("cog-0.4", "cog-0.6")
ADDRESSES: Final = ("cluster", "public")
UPLOAD_MODES: Final = ("auto", "put", "multipart", "s3", "presigned")
S3_MODES: Final = ("s3", "presigned")
OUTPUT_URLS: Final = ("presigned", "public", "s3")
KEY_FIELDS: Final = ("queue", "id", "entry", "name")
LONGEST_SIGNATURE: Final = 7 * 86_400
"""Seconds. S3 refuses a presigned URL with a longer life."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "text", "json")

MAX_NAME_BYTES: Final = 200
KEY_PREFIX: Final = "cog-celery:"
RESERVED_SUFFIXES: Final = ("-dead", "-run-time", "-setup-time")

# In a pod, every Service `cog-celery…` of the namespace puts variables of these forms into the environment.
_SERVICE_LINK = re.compile(r"COG_CELERY_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def default_name() -> str:
    """The host's name with everything but letters, digits, `.`, `_` and `-` replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-.") or "host"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process was told. Times are in seconds, sizes in bytes; None says that nobody chose.

    `load` is the way to make one from outside; the constructor does not validate.
    """

    queues: tuple[str, ...] = ()
    fleet: str | None = None
    redis_url: str = DEFAULT_REDIS_URL
    broker_url: str = ""
    name: str = ""
    create_group: bool = True

    model_dir: str | None = None
    slots: int = 1
    gpus: str | None = None
    slots_per_gpu: int = 1
    gpus_per_slot: int = 1
    python: str = ""
    model_env: tuple[str, ...] = ()
    model_id: str | None = None

    turn: float = 1.0
    lease: float | None = None
    foreign_lease: float = 900.0
    max_attempts: int | None = None
    dialect: str | None = None
    drain_timeout: float = 30.0
    predict_timeout: float | None = None
    setup_timeout: float | None = None
    cancel_grace: float = 5.0
    max_failure_count: int | None = None
    max_age: float | None = None
    max_length: int | None = None
    idempotent_ids: bool | None = None
    priority: bool | None = None
    idempotent_ttl: float = 3600.0

    upload_url: str | None = None
    upload_mode: str = "auto"
    upload_key: str = "{queue}/{id}/{name}"
    output_url: str = "presigned"
    output_url_lifetime: float = 3600.0
    overlap_uploads: bool = True
    input_cache: str | None = None
    input_cache_size: int = 10 << 30
    input_upload_url: str | None = None
    response_prefix: str = ""
    response_ttl: float | None = None
    addresses: str = "cluster"
    allow_addresses: tuple[str, ...] = ()
    deny_addresses: tuple[str, ...] = ()
    report_setup_run_url: str | None = None
    log_queue: str | None = None

    max_request_bytes: int = 16 << 20
    max_log_bytes: int = 4 << 20
    max_input_bytes: int = 8 << 30
    max_data_uri_bytes: int = 64 << 20
    max_output_bytes: int = 64 << 30
    max_output_files: int = 10_000

    heartbeat_file: str | None = None
    metrics_port: int | None = None
    remote_control: bool = True
    log_level: str = "info"
    log_format: str = "auto"

    def __post_init__(self) -> None:
        if not self.broker_url:
            msgspec.structs.force_setattr(self, "broker_url", self.redis_url)
        if not self.name:
            msgspec.structs.force_setattr(self, "name", default_name())

    @classmethod
    def load(
        cls, flags: Mapping[str, object], env: Mapping[str, str], file: Mapping[str, Given] = MappingProxyType({})
    ) -> Self:
        """Settings from flags (by field name; None and () are "not given") and, below them, variables, and what a fleet
        file says of the queue.

        Raises UsageError that names the option or variable, what was given, and the nearest right one.
        """
        _refuse_unknown_variables(env)
        given = {option.name: source for option in OPTIONS if (source := option.find(flags, env)) is not None}
        excluded = {other for one, other in _EXCLUSIVE if one in given}
        given |= {name: source for name, source in file.items() if name not in given and name not in excluded}
        if "gpus" in given and given["gpus"].value != "none":
            _refuse_together(given, "slots", "gpus")
        _refuse_together(given, "slots_per_gpu", "gpus_per_slot")
        for finer in ("slots_per_gpu", "gpus_per_slot"):
            if finer in given and "gpus" not in given:
                raise UsageError(f"{given[finer].label} needs {OPTION['gpus'].flag}, which says which GPUs there are")
        settings = cls(**{name: OPTION[name].kind.read(source) for name, source in given.items()})  # type: ignore[arg-type]
        if (mode := settings.upload_mode) != "auto" and (settings.upload_url or "").startswith("s3://") != (
            mode in S3_MODES
        ):
            needed = "an s3:// URL" if mode in S3_MODES else "an http(s):// URL"
            raise UsageError(f"{given['upload_mode'].label} {mode} needs {needed} as {OPTION['upload_url'].flag}")
        return settings

    def to_env(self) -> dict[str, str]:
        """The variables from which `load({}, …)` makes these same Settings."""
        defaults = msgspec.structs.fields(Settings)
        values = {field.name: getattr(self, field.name) for field in defaults if getattr(self, field.name) is not None}
        chosen = {
            field.name: values[field.name]
            for field in defaults
            if field.name in values and (field.name in _ALWAYS_TOLD or values[field.name] != field.default)
        }
        return {OPTION[name].variables[0]: OPTION[name].kind.write(value) for name, value in chosen.items()}

    def child_env(self, env: Mapping[str, str]) -> dict[str, str]:
        """The environment for a child process: `env`, with its settings replaced by these."""
        child = dict(env)
        self.install(child)
        return child

    def install(self, env: MutableMapping[str, str]) -> None:
        """Replace the settings in `env`, os.environ say, by these: others that it had are gone from it."""
        for option in OPTIONS:
            for variable in option.variables:
                env.pop(variable, None)
        env.update(self.to_env())

    def with_redis(self, url: str) -> Self:
        """The same on another Redis; the broker follows when it was the same server."""
        broker = url if self.broker_is_redis else self.broker_url
        return msgspec.structs.replace(self, redis_url=url, broker_url=broker)

    @property
    def broker_is_redis(self) -> bool:
        """Whether broker and queues are on the same server."""
        return self.broker_url == self.redis_url

    def with_queue(self, queue: str) -> Self:
        """The same for this one queue."""
        return msgspec.structs.replace(self, queues=(queue,))

    @property
    def response_ttl_ms(self) -> int:
        """How long a terminal response is kept, in milliseconds; 0: for ever."""
        return 0 if self.response_ttl is None else max(1, round(self.response_ttl * 1000))

    @property
    def queue(self) -> str:
        """The one queue. Raises UsageError when there is none, or more than one."""
        if len(self.queues) != 1:
            told = f"got {len(self.queues)}: {', '.join(self.queues)}" if self.queues else "none was named"
            raise UsageError(f"one queue is needed ({_names('queues')}), {told}")
        return self.queues[0]

    def for_bridge(self) -> Self:
        """These Settings, if a bridge can work with them. Raises UsageError."""
        if not self.queues:
            raise UsageError(f"a bridge needs a queue: {_names('queues')}")
        return self

    def for_model(self) -> Self:
        """These Settings with the model's folder and interpreter found and absolute. Raises UsageError.

        An interpreter that nobody named is that of the model's own environment, if it is installed, else ours.
        """
        folder = self.model_folder()
        python = self.python
        if not python:
            from cog_celery.models.installing import python_for  # most commands have no model

            python = python_for(folder)
        # Not resolved: the interpreter of a virtual environment is a link, and finds its packages by where the link is.
        found = shutil.which(python)
        if found is None:
            raise UsageError(f"{python}: no such interpreter, or it cannot be executed ({_names('python')})")
        return msgspec.structs.replace(self, model_dir=str(folder), python=os.path.abspath(found))

    def model_folder(self) -> Path:
        """The model's folder, absolute. Raises UsageError when it is not there, or has no cog.yaml."""
        if self.model_dir is None:
            raise UsageError(f"a model's folder is needed: MODEL_DIR or {OPTION['model_dir'].variables[0]}")
        folder = Path(os.path.abspath(self.model_dir))
        if not folder.is_dir():
            raise UsageError(f"{self.model_dir}: no such folder{_nearest_entry(folder)}")
        if not (folder / "cog.yaml").is_file():
            raise UsageError(f"{self.model_dir} has no cog.yaml: a model's folder has one that names its predictor")
        return folder

    def for_worker(self) -> Self:
        """These Settings, if a worker can work with them: as `for_model`, and exactly one queue. Raises UsageError."""
        assert self.queue
        return self.for_model()

    def __repr__(self) -> str:
        told = ", ".join(
            f"{field.name}={masked_url(value)!r}"
            if OPTION[field.name].kind.secret and value
            else f"{field.name}={value!r}"
            for field in msgspec.structs.fields(type(self))
            for value in [getattr(self, field.name)]
        )
        return f"Settings({told})"


_EXCLUSIVE: Final = (
    *(("gpus", "slots"), ("slots", "gpus")),
    *(("slots_per_gpu", "gpus_per_slot"), ("gpus_per_slot", "slots_per_gpu")),
)
"""Of these, what is said nearer to the process leaves the other one out."""

# A child may find another host name, or a variable REDIS_URL.
_ALWAYS_TOLD: Final = frozenset({"redis_url", "name"})


def masked_url(url: str) -> str:
    """The URL without what may be secret: user, password, query and fragment; of several (`;`), each."""
    return ";".join(_masked(part) for part in url.split(";"))


def _masked(url: str) -> str:
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    rest, query = re.fullmatch(r"([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "/" not in rest and "@" in query:  # a # or ? in a password that should have been %23 or %3F
        return f"{scheme}{separator}***@{_masked(query.rpartition('@')[2])}"
    user, at, rest = rest.rpartition("@")
    return f"{scheme}{separator}{'***' if user else ''}{at}{rest}{query[:1]}{'***' if query[1:] else ''}"


@dataclass(frozen=True)
class Given:
    """A value from outside, and the name it was given under: `--lease` or `COG_CELERY_LEASE`."""

    label: str
    value: object

    def refuse(self, why: str, *, secret: bool = False) -> NoReturn:
        """Raises the UsageError that names option, value and `why`."""
        text = str(self.value)
        shown = masked_url(text) if secret else text
        raise UsageError(f"{self.label} {_printable(shown)!r}: {why}")


@dataclass(frozen=True)
class Kind:
    """How a value is written in text; `parse` raises ValueError with a sentence."""

    metavar: str
    parse: Callable[[str], object]
    write: Callable[..., str] = str
    many: bool = False
    switch: bool = False
    secret: bool = False

    def read(self, given: Given) -> object:
        """The value of the field. Raises UsageError."""
        if isinstance(given.value, bool):
            return given.value
        if self.many and isinstance(given.value, list | tuple):
            return tuple(dict.fromkeys(self._one(Given(given.label, text)) for text in given.value))
        value = self._one(given)
        return (value,) if self.many else value

    def _one(self, given: Given) -> object:
        try:
            return self.parse(str(given.value).strip())
        except ValueError as error:
            given.refuse(str(error), secret=self.secret)


@dataclass(frozen=True)
class Option:
    """One row of the table: a field of Settings, its flag and variables, and the commands that take it."""

    name: str
    kind: Kind
    help: str
    commands: tuple[str, ...]
    flag: str = ""
    variables: tuple[str, ...] = ()
    default: str | None = None  # shown instead of the field's own

    def __post_init__(self) -> None:
        if not self.flag:
            object.__setattr__(self, "flag", "--" + self.name.replace("_", "-"))
        if not self.variables:
            object.__setattr__(self, "variables", (PREFIX + self.name.upper(),))

    def find(self, flags: Mapping[str, object], env: Mapping[str, str]) -> Given | None:
        """The given value; a flag wins, and an empty variable is one that is not set."""
        value = flags.get(self.name)
        if value is not None and value != ():
            return Given(self.flag, value)
        for variable in self.variables:
            if text := env.get(variable, "").strip():
                return Given(variable, _split(text) if self.kind.many else text)
        return None

    @property
    def shown_default(self) -> str:
        """The default, for people; empty when there is none."""
        if self.default is not None:
            return self.default
        default = next(field.default for field in msgspec.structs.fields(Settings) if field.name == self.name)
        return "" if default is None or default == () else self.kind.write(default)


def default_queue(model_dir: str) -> str:
    """A queue's name from that of the model's folder. Raises UsageError when it makes none."""
    folder = Path(os.path.abspath(model_dir)).name
    try:
        return parse_queue(re.sub(r"[^\w.-]+", "-", folder).strip("-"))
    except ValueError as error:
        raise UsageError(f"no queue can be named after {model_dir!r} ({error}): use {_names('queues')}") from None


def given(name: str, flags: Mapping[str, object], env: Mapping[str, str]) -> bool:
    """Whether the setting was named by a flag or a variable."""
    return OPTION[name].find(flags, env) is not None


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean …?` with the likeliest of the words, or nothing."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _printable(text: str) -> str:
    return text if len(text) <= MAX_NAME_BYTES else text[:MAX_NAME_BYTES] + "…"


def _names(name: str) -> str:
    return f"{OPTION[name].flag} or {OPTION[name].variables[0]}"


def _nearest_entry(folder: Path) -> str:
    try:
        return nearest(folder.name, (entry.name for entry in folder.parent.iterdir() if entry.is_dir()))
    except OSError:
        return ""


def _refuse_unknown_variables(env: Mapping[str, str]) -> None:
    known = [variable for option in OPTIONS for variable in option.variables]
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in known:
            continue
        if "KUBERNETES_SERVICE_HOST" in env and _SERVICE_LINK.fullmatch(name):
            continue
        raise UsageError(f"{_printable(name)}: there is no such setting{nearest(name, known)}")


def _refuse_together(given: Mapping[str, Given], one: str, other: str) -> None:
    if one in given and other in given:
        raise UsageError(f"{given[one].label} and {given[other].label} exclude each other: give one of them")


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters")
    return text


def parse_queue(text: str) -> str:
    """A queue's name that is safe as a key beside the keys that are made from it. Raises ValueError."""
    _text(text)
    if len(text.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a queue's name has at most {MAX_NAME_BYTES} bytes")
    if "," in text:
        raise ValueError("a queue's name has no comma: it separates names in variables")
    if text.startswith(KEY_PREFIX):
        raise ValueError(f"a queue's name does not begin with {KEY_PREFIX}")
    for suffix in RESERVED_SUFFIXES:
        if text.endswith(suffix):
            raise ValueError(f"a queue's name does not end with {suffix}: that stream belongs to another queue")
    return text


def _name(text: str) -> str:
    _text(text)
    if len(text.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a name has at most {MAX_NAME_BYTES} bytes")
    return text


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("the name of an environment variable is needed, without its value")
    return text


def _network(text: str) -> str:
    """A host's name (`*.example.com` for all below it), an address, or a network like 10.0.0.0/8."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    if "/" in text or not _HOST.fullmatch(text.lower()):
        raise ValueError("a host name, an address or a network like 10.0.0.0/8 is needed")
    return text.lower()


def _url(*schemes: str) -> Callable[[str], str]:
    expected = "a URL that begins with " + " or ".join(f"{scheme}://" for scheme in schemes) + " is needed"

    def parse(text: str) -> str:
        _text(text)
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:
            raise ValueError("is not a URL: look at its host and port") from None
        if url.scheme not in schemes or not text.startswith(f"{text[: len(url.scheme)]}://"):
            raise ValueError(expected + nearest(url.scheme, schemes))
        if not url.hostname:
            raise ValueError("the URL names no host")
        if port == 0:
            raise ValueError("the URL's port is 0")
        return text

    return parse


def _redis_url(text: str) -> str:
    return server_urls.checked_redis(_text(text))


def _upload_url(text: str) -> str | None:
    if not text:
        return None
    url = _url("http", "https", "s3")(text)
    if url.startswith("s3://"):
        _s3_url(url)
    return url


def _s3_url(text: str) -> str:
    """s3://bucket or s3://bucket/prefix. Where the server is and who we are, the AWS_* variables say."""
    url = urlsplit(text)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", url.netloc):
        raise ValueError("a bucket's name is needed, without user or port: s3://bucket/prefix")
    if url.query or url.fragment:
        raise ValueError("an s3:// URL has neither ? nor #: s3://bucket/prefix")
    return text


def _upload_key(text: str) -> str:
    _text(text)
    try:
        fields = [field for _, field, spec, conversion in string.Formatter().parse(text) if field is not None]
        plain = all(not spec and not conversion for _, _, spec, conversion in string.Formatter().parse(text))
    except ValueError:
        raise ValueError("a { or } is not closed: {queue}/{id}/{name}, say") from None
    for field in fields:
        if field not in KEY_FIELDS:
            raise ValueError(f"{{{field}}} is none of {', '.join(KEY_FIELDS)}{nearest(field, KEY_FIELDS)}")
    if not plain:
        raise ValueError("its fields take no format: {queue}/{id}/{name}, say")
    if "name" not in fields or not {"id", "entry"} & set(fields):
        raise ValueError("{name} and one of {id} and {entry} are needed, or predictions overwrite each other's files")
    return text


def _output_url(text: str) -> str:
    if text in OUTPUT_URLS:
        return text
    if "://" not in text:
        raise ValueError(f"is none of {', '.join(OUTPUT_URLS)}, and no URL{nearest(text, OUTPUT_URLS)}")
    url = urlsplit(_url("http", "https")(text))
    if url.query or url.fragment:
        raise ValueError("the URL that keys are appended to has neither ? nor #")
    return text


def _lifetime(text: str) -> float:
    value = float(_seconds(least=1).parse(text))  # type: ignore[arg-type]
    if value > LONGEST_SIGNATURE:
        raise ValueError(f"a presigned URL lives {LONGEST_SIGNATURE} seconds at most, a week")
    return value


def _broker_url(text: str) -> str:
    return server_urls.checked_broker(_text(text))


def _choice(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"is none of {', '.join(words)}{nearest(text, words)}")
        return text

    return Kind("|".join(words), parse)


def _switch(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("true or false is needed")
    return words[text.lower()]


def _seconds(*, least: float, zero: bool = False) -> Kind:
    limit = f"0, or at least {least:g}" if zero else f"at least {least:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value >= least or (zero and value == 0))):
            raise ValueError(f"a number of seconds is needed, {limit}")
        return value

    return Kind("SECONDS", parse, write=_write_seconds)


def _write_seconds(value: float) -> str:
    return repr(value).removesuffix(".0")


def _count(least: int) -> Kind:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
            raise ValueError(f"a whole number is needed, at least {least}")
        return int(text)

    return Kind("N", parse)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)


_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})\s*([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if not match or int(match[1]) == 0:
        raise ValueError("a number of bytes is needed, like 1048576, 512KiB or 16MiB")
    return int(match[1]) * _UNITS[match[2].upper()]


def _write_size(value: int) -> str:
    for unit in ("T", "G", "M", "K"):
        if value % _UNITS[unit] == 0:
            return f"{value // _UNITS[unit]}{unit}iB"
    return str(value)


_SECONDS_OR_NONE = _seconds(least=0, zero=True)
_LIMIT = _seconds(least=0.001)
_SIZE = Kind("BYTES", _size, write=_write_size)
_MANY_TEXT: Callable[[Sequence[str]], str] = ",".join
_REDIS, _BROKER = Kind("URL", _redis_url, secret=True), Kind("URL", _broker_url, secret=True)
_HTTP = Kind("URL", _url("http", "https"), secret=True)
_UPLOAD = Kind("URL", _upload_url, write=lambda url: url or "", secret=True)
_QUEUES = Kind("NAME", parse_queue, write=_MANY_TEXT, many=True)
_NETWORKS = Kind("HOST|NETWORK", _network, write=_MANY_TEXT, many=True)
_VARIABLES = Kind("NAME", _variable_name, write=_MANY_TEXT, many=True)
_SWITCH = Kind("", _switch, write=lambda value: "true" if value else "false", switch=True)
_PLAIN = Kind("TEXT", _text)
_PATH = Kind("PATH", _text)

_RUN, _BRIDGE, _WORKER = ("run",), ("bridge",), ("worker",)
_FLEET = _RUN + _BRIDGE + _WORKER
_MODEL = _RUN + _WORKER
_LOCAL = (*_MODEL, "predict")
_CLIENTS = ("send", "cancel", "check", "dead", "status")

OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        "queues",
        _QUEUES,
        "The stream that requests are added to; a bridge serves several.",
        (*_FLEET, "send", "cancel", "dead", "health", "status"),
        flag="--queue",
        variables=(PREFIX + "QUEUE",),
        default="`run`: the name of the model's folder",
    ),
    Option(
        "fleet",
        _PATH,
        "A YAML file of queues and their settings: a bridge serves all of them, a worker the one that --queue names.",
        (*_BRIDGE, *_WORKER, "check"),
    ),
    Option(
        "redis_url",
        _REDIS,
        "The Redis or Valkey of requests and responses: redis://, rediss:// (TLS), unix://, or "
        "redis+sentinel://HOST,HOST/NAME.",
        _FLEET + _CLIENTS,
        variables=(PREFIX + "REDIS_URL", "REDIS_URL"),
        default=f"{DEFAULT_REDIS_URL}; `run`: one of its own",
    ),
    Option(
        "broker_url",
        _BROKER,
        "Celery's broker: a Redis, in the same forms, amqp://, amqps://, or any other that Celery has.",
        (*_FLEET, "check"),
        default="as --redis-url",
    ),
    Option(
        "name",
        Kind("NAME", _name),
        "What consumers and nodes are named after.",
        (*_FLEET, "health"),
        default="the host's name",
    ),
    Option(
        "create_group",
        _SWITCH,
        "Create the stream and its consumer group, or wait until somebody does.",
        _RUN + _BRIDGE,
    ),
    Option("model_dir", _PATH, "The model's folder, with cog.yaml.", (), flag="MODEL_DIR"),
    Option("slots", _count(1), "Predictions at a time, each in a runner of its own.", _MODEL),
    Option(
        "gpus",
        Kind("SPEC", _text),
        "A slot per GPU: `auto` (all that are visible), `none`, or a list: 0,1 or 0:1 for a MIG instance, GPU-… or "
        "MIG-…; 0+1,2+3 for sets.",
        _MODEL,
    ),
    Option("slots_per_gpu", _count(1), "Slots that share each GPU.", _MODEL),
    Option("gpus_per_slot", _count(1), "GPUs that each slot has to itself.", _MODEL),
    Option(
        "python",
        _PATH,
        "The interpreter that the model runs in, CPython 3.9 to 3.14.",
        (*_LOCAL, "schema", "check"),
        variables=(PREFIX + "MODEL_PYTHON",),
        default="that of `cog-celery install`, else the one that runs us",
    ),
    Option(
        "model_env",
        _VARIABLES,
        "A variable of this environment that the model may see, beside the harmless ones.",
        (*_LOCAL, "schema"),
    ),
    Option("model_id", _PLAIN, "The id that goes with setup logs to --log-queue.", _MODEL),
    Option(
        "turn",
        _SECONDS_OR_NONE,
        "How long a slot goes on with the next predictions within one Celery task; 0: a task for each.",
        _MODEL,
    ),
    Option(
        "lease",
        _seconds(least=0.1),
        "An owner that is silent for this long has lost its prediction to another. Stored with the queue.",
        _FLEET,
        default="the queue's, else 10",
    ),
    Option(
        "foreign_lease",
        _seconds(least=0.1),
        "The same for consumers that are not ours, in the same group.",
        _RUN + _BRIDGE,
    ),
    Option(
        "max_attempts",
        _count(1),
        "Runs that a request may cost before it fails and goes to QUEUE-dead. Stored with the queue.",
        _FLEET,
        default="the queue's, else 3",
    ),
    Option(
        "dialect",
        _choice(*DIALECTS),
        "The form of the responses. Stored with the queue.",
        _FLEET,
        default="the queue's, else cog-0.4",
    ),
    Option(
        "drain_timeout",
        _SECONDS_OR_NONE,
        "After SIGTERM, how long running predictions may go on before they are released to other workers.",
        _FLEET,
    ),
    Option(
        "predict_timeout",
        _LIMIT,
        "The time predict() may take.",
        _LOCAL,
        default="no limit",
    ),
    Option("setup_timeout", _LIMIT, "The time setup() may take.", _LOCAL, default="no limit"),
    Option(
        "cancel_grace",
        _SECONDS_OR_NONE,
        "How long a canceled predictor may take to stop before its runner is killed.",
        _LOCAL,
    ),
    Option(
        "max_failure_count",
        _count(0),
        "The worker ends after more than N failures in a row.",
        _MODEL,
        default="no limit",
    ),
    Option(
        "max_age",
        _LIMIT,
        "A request that waited longer than this when its turn comes is not run any more: it fails.",
        _MODEL,
        default="no limit",
    ),
    Option(
        "max_length",
        _count(1),
        "A stream that is longer than this is warned of in the log.",
        _RUN + _BRIDGE,
        default="no limit",
    ),
    Option(
        "idempotent_ids",
        _SWITCH,
        "A request with the id of another one is not run: it gets the other's responses. Stored with the queue.",
        _FLEET,
        default="the queue's, else off",
    ),
    Option(
        "priority",
        _SWITCH,
        "The queue has a lane: requests in the stream QUEUE.high are served before those in QUEUE, but for every tenth "
        "time. Stored with the queue. `send` puts its requests there.",
        (*_FLEET, "send"),
        default="the queue's, else off",
    ),
    Option(
        "idempotent_ttl",
        _seconds(least=0.001),
        "How long an id is remembered after its prediction has ended, with --idempotent-ids.",
        _MODEL,
    ),
    Option(
        "upload_url",
        _UPLOAD,
        "Where output files go: http(s)://, or s3://bucket/prefix with the usual AWS_* variables.",
        _MODEL,
        default="none: data URIs",
    ),
    Option(
        "upload_mode",
        _choice(*UPLOAD_MODES),
        "How they go there: PUT raw, as a multipart form, or `auto`, whichever the server takes. To s3:// by S3's own "
        "API (`auto`, `s3`), or with a PUT that we sign ourselves (`presigned`).",
        _MODEL,
    ),
    Option(
        "upload_key",
        Kind("TEMPLATE", _upload_key),
        "The object's key below the prefix of an s3:// URL, of {queue}, {id} (the producer's), {entry} (the stream's) "
        "and {name}.",
        _MODEL,
    ),
    Option(
        "output_url",
        Kind("|".join(OUTPUT_URLS) + "|URL", _output_url),
        "What the output says of an object in s3://: a presigned GET, its public URL, s3://bucket/key, or the key "
        "after a URL of yours.",
        _MODEL,
    ),
    Option(
        "output_url_lifetime",
        Kind("SECONDS", _lifetime, write=_write_seconds),
        "How long a presigned GET lasts.",
        _MODEL,
    ),
    Option(
        "overlap_uploads",
        _SWITCH,
        "The next prediction starts while files of the last one are still on their way.",
        _MODEL,
    ),
    Option(
        "input_cache",
        _PATH,
        "A folder in which input files are kept for the next prediction that names the same, for all workers of a "
        "host. The server is asked each time whether its file has changed.",
        _LOCAL,
        default="none: each is fetched again",
    ),
    Option(
        "input_cache_size",
        _SIZE,
        "The size of that folder; what was used least recently goes first. Files below 64 KiB are not kept.",
        _LOCAL,
    ),
    Option(
        "input_upload_url",
        _UPLOAD,
        "Where `send -i NAME=@FILE` puts large files: http(s)://, or s3://bucket/prefix.",
        ("send",),
        default="none: inlined as data URIs",
    ),
    Option(
        "response_prefix",
        _PLAIN,
        "What every response_queue and cancel_key must begin with; requests that name others are refused.",
        _FLEET,
        default="none",
    ),
    Option("response_ttl", _LIMIT, "How long a terminal response is kept.", _FLEET, default="for ever"),
    Option(
        "addresses",
        _choice(*ADDRESSES),
        "Where files may come from and go to: private networks too, or public addresses alone; never this host, its "
        "link or cloud metadata, unless allowed.",
        _MODEL,
    ),
    Option(
        "allow_addresses",
        _NETWORKS,
        "A host name, address or network that --addresses would refuse, and that is allowed all the same.",
        _LOCAL,
        flag="--allow-address",
    ),
    Option(
        "deny_addresses",
        _NETWORKS,
        "A host name, address or network that is refused, whatever else allows it.",
        _LOCAL,
        flag="--deny-address",
    ),
    Option("report_setup_run_url", _HTTP, "A URL that is told once how setup() went.", _MODEL),
    Option("log_queue", _PLAIN, "A Redis list that setup's log lines are pushed to.", _MODEL),
    Option("max_request_bytes", _SIZE, "The size of a request's message.", _FLEET),
    Option(
        "max_log_bytes",
        _SIZE,
        "The log bytes that are kept of one prediction; more are neither in the response nor in the worker's log.",
        _LOCAL,
    ),
    Option("max_input_bytes", _SIZE, "The size of one input file.", _LOCAL),
    Option(
        "max_data_uri_bytes",
        _SIZE,
        "The size of a file that is put into a response as a data URI; all of a prediction together may have 380 MiB.",
        _LOCAL,
    ),
    Option("max_output_bytes", _SIZE, "The size of all output files of one prediction together.", _LOCAL),
    Option("max_output_files", _count(1), "The output files of one prediction.", _LOCAL),
    Option(
        "heartbeat_file",
        _PATH,
        "The file that the loop of a bridge or worker touches, for `cog-celery health`; `run` appends .bridge and "
        ".worker.",
        (*_FLEET, "health"),
        default="one in the temporary folder",
    ),
    Option(
        "metrics_port",
        Kind("PORT", _port),
        "The port on which Prometheus finds this process, one for each process of a host; `run` gives it to its "
        "bridge, and the next one to its worker.",
        _FLEET,
        default="none",
    ),
    Option("remote_control", _SWITCH, "Celery's remote control: Flower's buttons, `celery inspect`, revoke.", _MODEL),
    Option(
        "log_level",
        _choice(*LOG_LEVELS),
        "What is logged to standard error.",
        (*_FLEET, "predict", "schema", "install", "health", *_CLIENTS),
    ),
    Option(
        "log_format",
        _choice(*LOG_FORMATS),
        "The form of its lines; `auto` is text on a terminal, and a JSON object for each line anywhere else.",
        _FLEET,
    ),
)

OPTION: Final[Mapping[str, Option]] = {option.name: option for option in OPTIONS}
