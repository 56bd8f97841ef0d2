"""Every message between a slot and its runner: its exact form on the pipe, and what the other side reads in it."""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from cog_celery.errors import SetupError
from cog_celery.runners import runner as theirs
from cog_celery.runners.guardian import Guardian
from cog_celery.runners.runner import (
    PROTOCOL,
    Accepted,
    Blocked,
    Done,
    FieldError,
    File,
    Health,
    Hello,
    Log,
    Output,
    Ready,
    Refused,
    Runner,
    RunnerCommand,
    Schema,
    SetupFailed,
    TestInputs,
)
from cog_celery.runtime.cog._runner import events
from cog_celery.runtime.cog._runner.signature import Input

DOCUMENT = (Path(__file__).parents[2] / "docs" / "runner-protocol.md").read_text()
PYTHON = sys.version.split()[0]
MISSING = {"field": "text", "kind": "missing", "limit": None, "value": ""}
BOUNDLESS = {"field": "n", "kind": "le", "limit": float("inf"), "value": "nan"}


def described(name: str, type: str, required: bool) -> Input:
    field = Input(name, typing.cast(typing.Any, None))
    field.type, field.required = type, required
    return field


SPOKEN = [
    (
        events.hello(),
        '{"type":"hello","protocol":2,"python":"' + PYTHON + '"}',
        Hello(2, PYTHON),
    ),
    (
        events.ready(1.23456789, 0.5, [described("image", "Optional[Path]", False)], 4, True),
        '{"type":"ready","setup_time":1.234568,"in_setup":0.5,"inputs":[{"name":"image","type":"Optional[Path]","required":false}],'
        '"concurrency":4,"healthcheck":true}',
        Ready(1.234568, [{"name": "image", "type": "Optional[Path]", "required": False}], 4, True, 0.5),
    ),
    (
        events.setup_failed("refused", 'predict.py:3: missing type annotation for input: s\nwrite s: "str"', None),
        r'{"type":"setup_failed","kind":"refused",'
        r'"error":"predict.py:3: missing type annotation for input: s\nwrite s: \"str\"","in_setup":null}',
        SetupFailed("refused", 'predict.py:3: missing type annotation for input: s\nwrite s: "str"'),
    ),
    (
        events.accepted(b'"a"', [], []),
        '{"type":"accepted","id":"a","files":[]}',
        Accepted("a"),
    ),
    (
        events.accepted(b'"a"', ["https://h/é?x=1", "data:,two"], ["seed", "größe"]),
        '{"type":"accepted","id":"a","files":["https://h/é?x=1","data:,two"],"ignored":["seed","größe"]}',
        Accepted("a", ["https://h/é?x=1", "data:,two"], ["seed", "größe"]),
    ),
    (
        events.refused(b'"a"', [MISSING, BOUNDLESS]),
        '{"type":"refused","id":"a","errors":[{"field":"text","kind":"missing","limit":null,"value":""},'
        '{"field":"n","kind":"le","limit":null,"value":"nan"}]}',
        Refused("a", [FieldError("text", "missing"), FieldError("n", "le", None, "nan")]),
    ),
    (
        events.output(b'"a"', b"[1,2]", b""),
        '{"type":"output","id":"a","value":[1,2]}',
        Output("a", msgspec.Raw(b"[1,2]")),
    ),
    (
        events.output(b'"a"', b'{"image":null}', b'[{"at":["image"],"path":"/tmp/x.png"}]'),
        '{"type":"output","id":"a","value":{"image":null},"files":[{"at":["image"],"path":"/tmp/x.png"}]}',
        Output("a", msgspec.Raw(b'{"image":null}'), [File(["image"], "/tmp/x.png")]),
    ),
    (
        events.log(b'"a"', "10%\r20%\n\x1b[0m\ufffd"),
        r'{"type":"log","id":"a","text":"10%\r20%\n\u001b[0m' + '\ufffd"}',
        Log("a", "10%\r20%\n\x1b[0m\ufffd"),
    ),
    (
        events.blocked(b'"a"', 1.0006, "predict.py:12"),
        '{"type":"blocked","id":"a","seconds":1.001,"at":"predict.py:12"}',
        Blocked("a", 1.001, "predict.py:12"),
    ),
    (
        events.blocked(None, 1.25, "predict.py:3"),
        '{"type":"blocked","id":null,"seconds":1.250,"at":"predict.py:3"}',
        Blocked(None, 1.25, "predict.py:3"),
    ),
    (
        events.done(b'"a"', b"succeeded", False, 0.0000004, b'"text"'),
        '{"type":"done","id":"a","status":"succeeded","output":"text","streamed":false,"predict_time":0.000000}',
        Done("a", "succeeded", msgspec.Raw(b'"text"')),
    ),
    (
        events.done(
            b'"a"', b"succeeded", False, 2.5, b"null", b'[{"at":[],"path":"/tmp/x.png"}]', metrics=b'{"tokens":3}'
        ),
        '{"type":"done","id":"a","status":"succeeded","output":null,"files":[{"at":[],"path":"/tmp/x.png"}],'
        '"streamed":false,"metrics":{"tokens":3},"predict_time":2.500000}',
        Done(
            *("a", "succeeded", msgspec.Raw(b"null"), [File([], "/tmp/x.png")]),
            metrics=msgspec.Raw(b'{"tokens":3}'),
            predict_time=2.5,
        ),
    ),
    (
        events.done(b'"a"', b"canceled", True, 1.0),
        '{"type":"done","id":"a","status":"canceled","streamed":true,"predict_time":1.000000}',
        Done("a", "canceled", streamed=True, predict_time=1.0),
    ),
    (
        events.done(b'"a"', b"failed", False, 1.0, error="no"),
        '{"type":"done","id":"a","status":"failed","streamed":false,"error":"no","predict_time":1.000000}',
        Done("a", "failed", error="no", predict_time=1.0),
    ),
    (
        events.done(b'"a"', b"failed", False, 1.0, error="no room", platform=True),
        '{"type":"done","id":"a","status":"failed","streamed":false,"error":"no room","fault":"platform",'
        '"predict_time":1.000000}',
        Done("a", "failed", error="no room", fault="platform", predict_time=1.0),
    ),
    (
        events.health(True, None),
        '{"type":"health","healthy":true,"error":null}',
        Health(True),
    ),
    (
        events.health(False, "no GPU"),
        '{"type":"health","healthy":false,"error":"no GPU"}',
        Health(False, "no GPU"),
    ),
    (
        events.schema({"openapi": "3.0.2"}),
        '{"type":"schema","document":{"openapi":"3.0.2"}}',
        Schema({"openapi": "3.0.2"}),
    ),
    (
        events.test_inputs(b'{"image":null}', b'[{"at":["image"],"path":"/m/a.png"}]', None),
        '{"type":"test_inputs","input":{"image":null},"files":[{"at":["image"],"path":"/m/a.png"}],"error":null}',
        TestInputs({"image": None}, [File(["image"], "/m/a.png")]),
    ),
    (
        events.test_inputs(b"null", b"", "division by zero"),
        '{"type":"test_inputs","input":null,"files":[],"error":"division by zero"}',
        TestInputs(None, [], "division by zero"),
    ),
]

SENT: list[tuple[Callable[[Runner], None], str]] = [
    (
        lambda runner: runner.load(RunnerCommand("python", "/models/é", {})),
        '{"type":"load","protocol":2,"model_dir":"/models/é","predict":null,"setup":true,"concurrency":1}',
    ),
    (
        lambda runner: runner.load(RunnerCommand("python", "/m", {}, "predict.py:Predictor", False, 4)),
        '{"type":"load","protocol":2,"model_dir":"/m","predict":"predict.py:Predictor","setup":false,"concurrency":4}',
    ),
    (
        lambda runner: runner.predict("a", b'{"text": "x"}'),
        '{"type":"predict","id":"a","input":{"text": "x"},"hold":false,"context":{},"slot":0}',
    ),
    (
        lambda runner: runner.predict('"', b'{\n"n":\r1}', hold=True, context={"tenant": "é"}, slot=3),
        r'{"type":"predict","id":"\"","input":{ "n": 1},"hold":true,"context":{"tenant":"é"},"slot":3}',
    ),
    (lambda runner: runner.go("a", ["/tmp/é"]), '{"type":"go","id":"a","paths":["/tmp/é"]}'),
    (lambda runner: runner.drop("a"), '{"type":"drop","id":"a"}'),
    (lambda runner: runner.cancel_one("a"), '{"type":"cancel","id":"a"}'),
    (lambda runner: runner.ask("healthcheck"), '{"type":"healthcheck"}'),
    (lambda runner: runner.ask("schema"), '{"type":"schema"}'),
    (lambda runner: runner.ask("test_inputs"), '{"type":"test_inputs"}'),
]


@pytest.mark.parametrize(("made", "line", "read"), SPOKEN, ids=[line[9:40] for _, line, _ in SPOKEN])
def test_what_the_runner_says_has_this_form_and_is_read_as_this(made: bytes, line: str, read: msgspec.Struct) -> None:
    assert made.decode() == line + "\n"
    assert theirs._decode(made.rstrip(b"\n")) == read


STAND_IN = """#!{python}
import json, os, sys

_, _, _, inward, outward, _ = sys.argv

def say(**message):
    os.write(int(outward), json.dumps(message).encode() + b"\\n")

say(type="hello", protocol={protocol}, python="3.11.7")
with open(int(inward), encoding="utf-8") as lines:
    for line in lines:
        say(type="log", id="", text=line)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[int], RunnerCommand]:
    """An interpreter that runs no runner: it says its version, and then each line that it is sent."""

    def make(protocol: int) -> RunnerCommand:
        program = tmp_path / "python"
        program.write_text(STAND_IN.format(python=sys.executable, protocol=protocol))
        program.chmod(0o755)
        return RunnerCommand(str(program), str(tmp_path), {})

    return make


def test_what_the_slot_sends_has_this_form(stand_in: Callable[[int], RunnerCommand]) -> None:
    with closing(Guardian()) as guardian:
        runner = Runner(stand_in(PROTOCOL), guardian)
        try:
            for send, line in SENT:
                send(runner)
                said: list[object] = []
                while not (said := [one for one in runner.wait(10.0) if isinstance(one, Log)]):
                    pass
                assert said == [Log("", line + "\n")]
        finally:
            runner.end()


@pytest.mark.parametrize("protocol", [1, 3])
def test_a_runner_of_another_version_is_refused_with_what_to_do(
    stand_in: Callable[[int], RunnerCommand], protocol: int
) -> None:
    with closing(Guardian()) as guardian:
        command = stand_in(protocol)
        runner = Runner(command, guardian)
        with pytest.raises(SetupError) as refused:
            runner.setup(command, lambda lines: None, timeout=10.0)
        assert str(refused.value) == (
            f"The runner speaks protocol {protocol}, this worker 2: install one release of both."
        )
        assert runner.ended


def types_below(heading: str) -> set[str]:
    """The messages that the document has in the table below this heading."""
    section = DOCUMENT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section.lstrip().partition("\n\n")[0], re.MULTILINE))


def type_of(line: str) -> str:
    return str(msgspec.json.decode(line)["type"])


def test_the_document_has_every_message_and_each_has_a_form_here() -> None:
    known = {struct.__struct_config__.tag for struct in typing.get_args(theirs.Message)}
    assert types_below("From the runner to the slot") == known == {type_of(line) for _, line, _ in SPOKEN}
    assert types_below("From the slot to the runner") == {type_of(line) for _, line in SENT}
    assert f"Version {PROTOCOL}." in DOCUMENT and events.PROTOCOL == PROTOCOL


@pytest.mark.parametrize("struct", typing.get_args(theirs.Message), ids=lambda struct: struct.__name__)
def test_the_document_names_every_field_that_a_slot_reads(struct: type[msgspec.Struct]) -> None:
    config = struct.__struct_config__
    row = re.search(rf"^\| `{config.tag}` \|(.*)$", DOCUMENT.partition("## From the runner")[2], re.MULTILINE)
    assert row is not None
    assert set(struct.__struct_fields__) <= set(re.findall(r"`(\w+)`", row[1]))
