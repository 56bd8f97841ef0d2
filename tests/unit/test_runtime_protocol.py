"""Every message of the runner in its exact form, under each interpreter that is here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cog_celery.runtime.cog._runner import events
from tests.support.bare_runner import PYTHONS, BareRunner, write_model
from tests.support.corpus import FOLDER

PREDICTOR = """
    import asyncio
    import io
    import os
    import sys
    import tempfile
    from typing import Any, List, Optional

    from cog import BaseModel, BasePredictor, File, Input, Path, Secret, current_scope, emit_metric


    class Answer(BaseModel):
        text: str
        note: Optional[str]
        image: Path


    class Predictor(BasePredictor):
        def setup(self) -> None:
            print("setup")
            self.folder = tempfile.mkdtemp()

        def predict(
            self,
            mode: str,
            text: str = "x",
            count: int = Input(default=2, ge=0),
            image: Optional[Path] = None,
            images: List[Path] = Input(default=[]),
            old: File = Input(default="predict.py"),
            token: Secret = Input(default="hidden"),
        ) -> Any:
            return getattr(self, mode)(text=text, count=count, image=image, images=images, old=old, token=token)

        def echo(self, text, **_):
            return text

        def nothing(self, **_):
            return None

        def yields(self, text, count, **_):
            for i in range(count):
                print(text, i)
                yield "%s %d" % (text, i)

        def fails(self, text, **_):
            print("before")
            raise ValueError(text)

        def fails_later(self, text, **_):
            yield "partial"
            raise ValueError(text)

        def write(self, name, text):
            path = os.path.join(self.folder, name)
            with open(path, "w") as file:
                file.write(text)
            return Path(path)

        def a_file(self, text, **_):
            return self.write("out.txt", text)

        def overwrites(self, count, **_):
            for i in range(count):
                yield self.write("same.txt", "content %d" % i)
            os.unlink(os.path.join(self.folder, "same.txt"))

        def structured(self, text, **_):
            return {"answers": [Answer(text=text, image=self.write("a.png", "A"))], "raw": io.BytesIO(b"raw")}

        def lost_file(self, **_):
            return Path("/nowhere/at/all.png")

        def not_json(self, **_):
            return object()

        def nan(self, **_):
            return [float("nan"), float("inf"), 1.5]

        def surrogate(self, **_):
            return "\\ud800 \\U0001f600"

        def reads(self, image, images, old, **_):
            return [image and image.read_text(), [path.read_text() for path in images], old.read(11).decode()]

        def secret(self, token, **_):
            print(token, repr(token))
            return [token, token.get_secret_value()]

        def measured(self, **_):
            scope = current_scope()
            scope.record_metric("tokens", 3)
            scope.record_metric("tokens", 2, mode="incr")
            scope.record_metric("steps", "a", mode="append")
            scope.metrics["rate"] = 0.5
            emit_metric("tokens.out", 7)
            return dict(scope.context)

        async def waits(self, text, **_):
            await asyncio.sleep(0)
            return text

        async def awaits_and_yields(self, text, count, **_):
            for i in range(count):
                await asyncio.sleep(0)
                yield "%s %d" % (text, i)

        def surroundings(self, **_):
            return {
                "folder": os.getcwd(),
                "argv": sys.argv,
                "path": sys.path[:2],
                "stdin": sys.stdin.read(),
                "modules": sorted({name.partition(".")[0] for name in sys.modules}),
            }

        def odd_prints(self, **_):
            print("\\udcff caf\\u00e9 \\ud800")
            print("no newline", end="")
            sys.stderr.write("partial error")
"""


@pytest.fixture(scope="module", params=PYTHONS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareRunner]:
    model = write_model(tmp_path_factory.mktemp("protocol"), PREDICTOR)
    with BareRunner(model, PYTHONS[request.param]) as runner:
        hello = runner.receive_line()
        assert re.fullmatch(rb'\{"type":"hello","protocol":2,"python":"%s\.\d+\S*"\}' % request.param.encode(), hello)
        runner.send({"type": "load", "protocol": 2, "model_dir": str(model), "predict": None})
        ready = runner.receive()
        assert 0 <= ready.pop("in_setup") < ready.pop("setup_time") < 5
        assert ready == {
            "type": "ready",
            "inputs": [
                {"name": "mode", "type": "str", "required": True},
                {"name": "text", "type": "str", "required": False},
                {"name": "count", "type": "int", "required": False},
                {"name": "image", "type": "Optional[Path]", "required": False},
                {"name": "images", "type": "List[Path]", "required": False},
                {"name": "old", "type": "File", "required": False},
                {"name": "token", "type": "Secret", "required": False},
            ],
            "concurrency": 1,
            "healthcheck": False,
        }
        assert runner.logs() == "old: File: File is the old way, declare cog.Path\nsetup\n"
        yield runner
        assert runner.end() == 0
        assert runner.logs() == ""


def without_time(line: bytes) -> bytes:
    line, count = re.subn(rb',"predict_time":\d+\.\d{6}\}$', b"}", line)
    assert count == 1, line
    return line


def content(entry: dict[str, Any]) -> tuple[list[Any], str, str]:
    path = Path(entry["path"])
    assert path.is_absolute()
    return entry["at"], path.name, path.read_text()


def test_a_value_is_accepted_and_done_in_two_lines(runner: BareRunner) -> None:
    runner.begin({"mode": "echo", "text": "Grüße"}, id='a "strange" id')
    assert runner.receive_line() == rb'{"type":"accepted","id":"a \"strange\" id","files":[]}'
    done = r'{"type":"done","id":"a \"strange\" id","status":"succeeded","output":"Grüße","streamed":false}'
    assert without_time(runner.receive_line()).decode() == done
    assert runner.silent()


def test_yields_are_outputs_and_done_has_none(runner: BareRunner) -> None:
    id = runner.begin({"mode": "yields"}).encode()
    assert runner.receive()["type"] == "accepted"
    assert runner.receive_line() == b'{"type":"output","id":"%b","value":"x 0"}' % id
    assert runner.receive_line() == b'{"type":"output","id":"%b","value":"x 1"}' % id
    assert without_time(runner.receive_line()) == b'{"type":"done","id":"%b","status":"succeeded","streamed":true}' % id
    assert runner.logs() == "x 0\nx 1\n"


def test_a_predictor_that_yields_nothing_has_streamed(runner: BareRunner) -> None:
    done = runner.done({"mode": "yields", "count": 0})
    assert (done["status"], done["streamed"], "output" in done) == ("succeeded", True, False)


def test_none_is_an_output(runner: BareRunner) -> None:
    done = runner.done({"mode": "nothing"})
    assert (done["status"], done["streamed"], done["output"]) == ("succeeded", False, None)


@pytest.mark.parametrize("mode", ["waits", "awaits_and_yields"])
def test_async_predictors_answer_like_others(runner: BareRunner, mode: str) -> None:
    for _ in range(2):  # the loop lives on
        messages = runner.predict({"mode": mode})
        assert messages[-1]["status"] == "succeeded"
        if mode == "waits":
            assert messages[-1]["output"] == "x"
        else:
            assert [message["value"] for message in messages[1:-1]] == ["x 0", "x 1"]
            assert messages[-1]["streamed"]


def test_an_exception_is_its_text_and_its_traceback_begins_in_the_model(runner: BareRunner) -> None:
    done = runner.done({"mode": "fails", "text": "it broke"})
    assert (done["status"], done["error"]) == ("failed", "it broke")
    before, title, first, *_, last = runner.logs().splitlines()
    assert (before, title, last) == ("before", "Traceback (most recent call last):", "ValueError: it broke")
    assert re.fullmatch(r'  File ".*/predict\.py", line \d+, in predict', first)


def test_an_exception_without_text_is_its_repr(runner: BareRunner) -> None:
    assert runner.done({"mode": "fails", "text": ""})["error"] == "ValueError('')"
    assert runner.logs().endswith("ValueError\n")


def test_output_before_a_failure_was_sent(runner: BareRunner) -> None:
    _, output, done = runner.predict({"mode": "fails_later", "text": "late"})
    assert (output["value"], done["status"], done["error"], done["streamed"]) == ("partial", "failed", "late", True)
    assert "in fails_later" in runner.logs()


def test_a_returned_file_is_named_where_it_lies(runner: BareRunner) -> None:
    done = runner.done({"mode": "a_file", "text": "content"})
    assert done["output"] is None
    assert [content(entry) for entry in done["files"]] == [([], "out.txt", "content")]


def test_a_yielded_file_survives_what_the_model_does_next(runner: BareRunner) -> None:
    _, *outputs, _ = runner.predict({"mode": "overwrites", "count": 3})
    assert [output["value"] for output in outputs] == [None] * 3
    assert [content(entry) for output in outputs for entry in output["files"]] == [
        ([], "same.txt", f"content {number}") for number in range(3)
    ]
    kept = outputs[0]["files"][0]["path"]
    runner.done({"mode": "echo"})
    assert not os.path.exists(kept), "copies are gone with the next prediction"


def test_files_at_any_depth_leave_null_behind(runner: BareRunner) -> None:
    done = runner.done({"mode": "structured", "text": "t"})
    assert done["output"] == {"answers": [{"text": "t", "image": None}], "raw": None}
    assert [content(entry) for entry in done["files"]] == [
        (["answers", 0, "image"], "a.png", "A"),
        (["raw"], "file", "raw"),
    ]


def test_an_output_that_cannot_be_sent_says_what_to_return(runner: BareRunner) -> None:
    assert runner.done({"mode": "lost_file"})["error"] == (
        "The output /nowhere/at/all.png is not a file: write it before it is returned."
    )
    assert "An output of type object cannot be sent" in runner.done({"mode": "not_json"})["error"]
    runner.logs()


def test_what_has_no_form_in_json_is_null_or_replaced(runner: BareRunner) -> None:
    assert runner.done({"mode": "nan"})["output"] == [None, None, 1.5]
    assert runner.done({"mode": "surrogate"})["output"] == "\ufffd \U0001f600"


def test_a_secret_is_masked_everywhere_but_in_the_model(runner: BareRunner) -> None:
    assert runner.done({"mode": "secret", "token": "abc"})["output"] == ["**********", "abc"]
    assert runner.logs() == "********** **********\n"


def test_metrics_are_reported_and_context_is_there(runner: BareRunner) -> None:
    done = runner.done({"mode": "measured"}, context={"tenant": "t1"})
    assert done["output"] == {"tenant": "t1"}
    assert done["metrics"] == {"tokens": 5, "steps": ["a"], "rate": 0.5, "tokens.out": 7}
    runner.logs()
    assert "metrics" not in runner.done({"mode": "echo"})


def test_refused_fields_come_in_order_and_predict_is_not_entered(runner: BareRunner) -> None:
    id = runner.begin({"mode": [], "count": -1, "image": "ftp://x/y", "token": {"a": 1}, "unknown": 1})
    assert json.loads(runner.receive_line()) == {
        "type": "refused",
        "id": id,
        "errors": [
            {"field": "mode", "kind": "str", "limit": None, "value": "[]"},
            {"field": "count", "kind": "ge", "limit": 0, "value": "-1"},
            {"field": "image", "kind": "url_scheme", "limit": "ftp", "value": "'ftp:…'"},
            {"field": "token", "kind": "str", "limit": None, "value": "**********"},
        ],
    }
    assert runner.silent() and runner.logs() == ""


def test_unknown_inputs_are_named_and_ignored(runner: BareRunner) -> None:
    accepted, done = runner.predict({"mode": "echo", "zeta": 1, "alpha": 2})
    assert accepted["ignored"] == ["zeta", "alpha"]
    assert done["status"] == "succeeded"
    assert runner.logs() == ""


def test_files_are_waited_for_and_handed_over_in_order(runner: BareRunner, tmp_path: Path) -> None:
    urls = ["https://h/one", "data:text/plain,two", "HTTP://h/three"]
    id = runner.begin({"mode": "reads", "image": urls[0], "images": urls[1:]})
    accepted = runner.receive()
    assert accepted == {"type": "accepted", "id": id, "files": urls}
    assert runner.silent()
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path in paths:
        path.write_text(path.name)
    runner.send({"type": "go", "id": id, "paths": [str(path) for path in paths]})
    (done,) = runner.until_over()
    assert done["output"] == ["one", ["two", "three"], "\nimport asy"]


def test_hold_waits_for_go(runner: BareRunner) -> None:
    id = runner.begin({"mode": "echo"}, hold=True)
    assert runner.receive()["files"] == []
    assert runner.silent()
    runner.send({"type": "go", "id": id, "paths": []})
    assert runner.receive()["status"] == "succeeded"


def test_drop_ends_a_held_prediction_without_entering_it(runner: BareRunner) -> None:
    id = runner.begin({"mode": "fails"}, hold=True)
    assert runner.receive()["type"] == "accepted"
    runner.send({"type": "drop", "id": id})
    assert without_time(runner.receive_line()) == (
        b'{"type":"done","id":"%b","status":"canceled","streamed":false}' % id.encode()
    )
    assert runner.logs() == ""
    assert runner.done({"mode": "echo"})["status"] == "succeeded"


def test_json_that_python_cannot_read_is_refused_and_costs_no_setup(runner: BareRunner) -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    runner.send_line(b'{"type":"predict","id":"deep","input":{"mode":%b},"hold":false}' % deep)
    refused = runner.receive()
    assert (refused["type"], refused["id"]) == ("refused", "deep")
    assert refused["errors"][0]["kind"] == "invalid"
    assert runner.done({"mode": "echo"})["status"] == "succeeded"


def test_a_huge_number_is_refused_one_way_or_the_other(runner: BareRunner) -> None:
    line = b'{"type":"predict","id":"big","input":{"mode":"echo","count":1.%b,"text":%b},"hold":false}' % (
        b"0" * 5000,
        b"9" * 5000,
    )
    runner.send_line(line)
    assert runner.until_over()[-1]["id"] == "big"
    assert runner.done({"mode": "echo"})["status"] == "succeeded"
    runner.logs()


def test_large_messages_pass_both_ways(runner: BareRunner) -> None:
    text = "0123456789" * 200_000
    assert runner.done({"mode": "echo", "text": text})["output"] == text


def test_the_model_finds_itself_where_it_expects(runner: BareRunner) -> None:
    found = runner.done({"mode": "surroundings"})["output"]
    assert found["folder"] == str(runner.model)
    assert found["argv"] == ["predict.py"]
    assert found["path"][0] == str(runner.model)
    assert found["path"][1].endswith("/runtime")
    assert found["stdin"] == ""
    assert not {"celery", "redis", "msgspec", "yaml"} & set(found["modules"])


def test_print_never_fails_and_all_is_written_before_done(runner: BareRunner) -> None:
    assert runner.done({"mode": "odd_prints"})["status"] == "succeeded"
    assert sorted(runner.logs().split("\n")) == sorted(["\\udcff café \\ud800", "no newlinepartial error"])


def test_a_worker_of_another_version_is_told_so(tmp_path: Path) -> None:
    with BareRunner(write_model(tmp_path, PREDICTOR)) as runner:
        runner.receive()
        runner.send({"type": "load", "protocol": 1, "model_dir": str(tmp_path), "predict": None})
        assert runner.process.wait(10) == 1
        assert runner.logs() == (
            "The worker sent 'load' of protocol 1; this runner expects 'load' of protocol 2: "
            "install one release of both.\n"
        )


def test_a_message_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    with BareRunner(write_model(tmp_path, PREDICTOR)) as runner:
        runner.load()
        runner.logs()
        runner.send({"type": "dance"})
        assert runner.process.wait(10) == 1
        assert runner.logs() == "The worker sent 'dance', which is no message of protocol 2.\n"


def test_a_predictor_can_be_described_without_its_setup(tmp_path: Path) -> None:
    source = """
        from cog import BasePredictor, Path

        class Predictor(BasePredictor):
            test_inputs = {"image": Path(__file__)}

            def setup(self):
                raise ValueError("no weights here")

            def predict(self, image: Path) -> str:
                return ""
    """
    with BareRunner(write_model(tmp_path, source)) as runner:
        assert runner.load(setup=False)["type"] == "ready"
        runner.send({"type": "schema"})
        # Laid out in the file, and in one line here.
        document = json.dumps(json.loads((FOLDER / "document.json").read_text()), separators=(",", ":"))
        assert runner.receive_line() == b'{"type":"schema","document":%b}' % document.encode()
        runner.send({"type": "test_inputs"})
        assert runner.receive_line() == (
            b'{"type":"test_inputs","input":{"image":null},"files":[{"at":["image"],"path":"%b"}],"error":null}'
            % str(tmp_path / "predict.py").encode()
        )


def test_a_loop_may_be_blocked_by_nobody_that_is_known() -> None:
    assert events.blocked(None, 1.25, "predict.py:3") == (
        b'{"type":"blocked","id":null,"seconds":1.250,"at":"predict.py:3"}\n'
    )


@pytest.mark.parametrize(
    ("made", "error"), [("3", "test_inputs is int, not a dict"), ("lambda self: 1 / 0", "division by zero")]
)
def test_test_inputs_that_cannot_be_made_say_why(tmp_path: Path, made: str, error: str) -> None:
    source = f"""
        from cog import BasePredictor

        class Predictor(BasePredictor):
            test_inputs = {made}

            def predict(self) -> str:
                return ""
    """
    with BareRunner(write_model(tmp_path, source)) as runner:
        runner.load()
        runner.send({"type": "test_inputs"})
        assert runner.receive() == {"type": "test_inputs", "input": None, "files": [], "error": error}
