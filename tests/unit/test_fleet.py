"""The fleet file: what it can say, and what is said of one that is wrong."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from cog_celery import fleet
from cog_celery.errors import UsageError
from cog_celery.fleet import Front
from cog_celery.settings import Settings

GOOD = """
defaults: {dialect: cog-0.6, drain_timeout: 60, model_env: [HF_HOME]}
queues:
  hello:
    model: models/hello
    slots: 2
    priority: yes
    predict-timeout: 60
    upload_url: s3://bucket/hello
    response_prefix: "response:"
    max_request_bytes: 1MiB
  quiet: {dialect: cog-0.4, python: ./python3, gpus: "0,1", drain_timeout: ~}
  translate:
    versions: {v1: translate-v1, 3.10: translate-v2}
    default: 3.10
  translate-v1: {model: models/translate}
  translate-v2: &two
    model: models/translate
    slots: 4
  spare:
    <<: *two
    slots: 1
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_a_bridge_serves_all_queues_each_with_what_it_was_told(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    settings, plans = fleet.plans({}, {"COG_CELERY_FLEET": str(path), "REDIS_URL": "redis://redis:1"})
    names = ("hello", "quiet", "translate", "translate-v1", "translate-v2", "spare")
    assert settings.queues == names
    by_name = {plan.settings.queue: plan for plan in plans}
    assert tuple(by_name) == names
    assert {plan.settings.redis_url for plan in plans} == {"redis://redis:1"}
    hello = by_name["hello"].settings
    assert (hello.dialect, hello.drain_timeout, hello.slots, hello.priority) == ("cog-0.6", 60, 2, True)
    assert (hello.predict_timeout, hello.upload_url, hello.response_prefix) == (60, "s3://bucket/hello", "response:")
    assert (hello.max_request_bytes, hello.model_env) == (1 << 20, ("HF_HOME",))
    assert hello.model_dir == str(tmp_path / "models/hello")
    quiet = by_name["quiet"].settings
    assert (quiet.dialect, quiet.gpus, quiet.drain_timeout) == ("cog-0.4", "0,1", 60)
    assert quiet.python == f"{tmp_path}/./python3"
    assert by_name["translate"].front == Front({"v1": "translate-v1", "3.10": "translate-v2"}, "3.10")
    assert [name for name, plan in by_name.items() if plan.front] == ["translate"]
    spare = by_name["spare"].settings
    assert (spare.slots, spare.model_dir) == (1, str(tmp_path / "models/translate"))


def test_a_bridge_may_serve_some_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    settings, plans = fleet.plans({"fleet": str(path), "queues": ("quiet", "translate")}, {})
    assert settings.queues == ("quiet", "translate") == tuple(plan.settings.queue for plan in plans)


def test_without_a_file_a_bridge_does_as_it_was_told() -> None:
    settings, plans = fleet.plans({"queues": ("a", "b"), "lease": "3"}, {})
    assert settings.queues == ("a", "b")
    assert [(plan.settings.queue, plan.settings.lease, plan.front) for plan in plans] == [
        ("a", 3, None),
        ("b", 3, None),
    ]
    with pytest.raises(UsageError, match="a bridge needs a queue"):
        fleet.plans({}, {})


def test_flags_and_variables_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    settings = fleet.load(
        {"fleet": str(path), "queues": ("hello",), "predict_timeout": "5"},
        {"COG_CELERY_MODEL_DIR": "/models/hello", "COG_CELERY_GPUS": "3", "COG_CELERY_DIALECT": "cog-0.4"},
    )
    assert (settings.predict_timeout, settings.model_dir, settings.dialect) == (5, "/models/hello", "cog-0.4")
    assert settings.gpus == "3", "slots: 2 of the file, which GPUs exclude, is left out"
    assert settings.priority is True


def test_a_worker_gets_what_its_queue_was_told_and_finds_it_again_in_its_environment(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    settings = fleet.load({"fleet": str(path), "queues": ("hello",)}, {})
    assert fleet.load({}, settings.to_env()) == settings
    with pytest.raises(UsageError, match=r"fleet.yaml has no queue 'helo'; did you mean hello\?"):
        fleet.load({"fleet": str(path), "queues": ("helo",)}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: keys are needed, like `queues:`"),
        ("- a", ":1: the file: keys are needed"),
        ("queues: {", ":1: not YAML"),
        ("queues:\n\ta: {}", ":2: not YAML"),
        ("queue: {a: }", ":1: unknown key 'queue'; did you mean queues?"),
        ("defaults: {slots: 2}", "names no queues: `queues:` is needed"),
        ("queues:", ":1: queues: keys are needed, like `hello:`"),
        ("queues: {}", ":1: queues: keys are needed, like `hello:`"),
        ("queues: [a]", ":1: queues: keys are needed"),
        ("queues:\n  a: 7", ":2: queues.a: keys are needed, like `model:`"),
        ("queues:\n  a:\n    slot: 2", ":3: queues.a: unknown setting 'slot'; did you mean slots?"),
        ("queues:\n  a:\n    slots: two", ":3: queues.a.slots 'two': a whole number is needed, at least 1"),
        ("queues:\n  a:\n    slots: [1, 2]", ":3: queues.a.slots: one value is needed, not a list"),
        ("queues:\n  a:\n    slots: {n: 1}", ":3: a text or a list of texts is needed here"),
        ("queues:\n  a:\n    priority: maybe", ":3: queues.a.priority 'maybe': true or false is needed"),
        ("queues:\n  a: {slots: 1, slots: 2}", ":2: queues.a: 'slots' is there twice"),
        ("queues:\n  a: {}\n  a: {}", ":3: queues: 'a' is there twice"),
        ("queues:\n  a: {slots: 1, gpus: auto}", "exclude each other"),
        ("queues:\n  a-dead: {}", ":2: queues: 'a-dead': a queue's name does not end with -dead"),
        ("queues:\n  cog-celery:x: {}", ":2: queues: 'cog-celery:x': a queue's name does not begin with"),
        (f"queues:\n  {'a' * 300}: ", ":2: queues: '" + "a" * 200),
        ("queues:\n  ? [a]\n  : {}", ":2: queues: a key must be a text"),
        ("queues:\n  a: {redis_url: redis://x}", "'redis_url' belongs to a process, not to a queue: give --redis-url"),
        ("queues:\n  a: {log-level: debug}", "belongs to a process"),
        ("queues:\n  a: {versions: {v1: b}}\n  b: {}\n  c: {default: v1}", ":4: queues.c: `default` needs `versions`"),
        ("queues:\n  a: {versions: {}}", ":2: queues.a.versions: keys are needed, like `v1:`"),
        ("queues:\n  a: {versions: {v1: }}", "a version and the name of its queue are needed"),
        (
            "queues:\n  a: {versions: {v1: bb}}\n  b: {}",
            "queues.a.versions.v1: there is no queue 'bb'; did you mean b?",
        ),
        ("queues:\n  a: {versions: {v1: a}}", "queues.a.versions.v1: a has versions itself"),
        ("queues:\n  a: {versions: {v1: b}, default: v2}\n  b: {}", "there is no version 'v2'; did you mean v1?"),
        ("queues:\n  a: {versions: {v1: b}, slots: 2}\n  b: {}", "a queue with versions has no slots, and 'slots'"),
        ("queues:\n  a: {versions: {v1: b}, priority: on}\n  b: {}", "b needs `priority: true`, as a has a lane"),
        ("queues:\n  a: {versions: {v1: b}}\n  b: {dialect: cog-0.6}", "a answers in cog-0.4 and b in cog-0.6"),
        ("queues:\n  a: {priority: on}\n  a.high: {}", ":3: queues.a.high is the lane of a, which has `priority`"),
        ("queues:\n  a: &a\n    <<: *a", "an alias in it names what it is in itself"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line_and_what_is_right(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        fleet.plans({"fleet": str(path)}, {})
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_aliases_of_aliases_cost_no_more_than_the_text_that_they_are(tmp_path: Path) -> None:
    merged = "&m0 {slots: 3}"
    for number in range(1, 60):
        merged = f"&m{number} {{<<: [{merged}, *m{number - 1}]}}"
    path = written(tmp_path, f"queues:\n  a: {{<<: {merged}}}\n")
    _, [plan] = fleet.plans({"fleet": str(path)}, {})
    assert plan.settings.slots == 3


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    for content, message in ((None, "No such file"), (b"\xff\xfe\xfa", "is not UTF-8"), (b"a" * (2 << 20), "MiB")):
        path = tmp_path / f"{message}.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            fleet.read(path)
    with pytest.raises(UsageError, match="is not a file"):
        fleet.read(tmp_path)


def test_every_setting_of_a_queue_can_be_said_in_the_file_and_none_of_a_process() -> None:
    of_a_queue = set(Settings.__struct_fields__) - fleet.OF_A_PROCESS - {"model_dir"} | {"model"}
    assert of_a_queue == fleet.KEYS
    assert fleet.OF_A_FRONT < fleet.KEYS
