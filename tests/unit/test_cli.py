from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cog_celery import __version__
from cog_celery.cli import fleet
from cog_celery.cli import main as cli
from cog_celery.settings import OPTIONS, Settings

ROOT = Path(__file__).parents[2]

# The contract: names that may be added to, but not taken away.
CONTRACT = {
    "run": ["--queue", "--redis-url", "--slots", "--gpus", "--upload-url", "--predict-timeout"],
    "bridge": [
        *("--queue", "--redis-url", "--broker-url", "--create-group", "--no-create-group", "--dialect", "--lease"),
        *("--max-attempts", "--drain-timeout"),
    ],
    "worker": [
        *(
            "--queue",
            "--name",
            "--redis-url",
            "--broker-url",
            "--slots",
            "--gpus",
            "--slots-per-gpu",
            "--gpus-per-slot",
        ),
        *("--python", "--model-env", "--upload-url", "--upload-mode", "--turn", "--drain-timeout", "--predict-timeout"),
        *("--dialect", "--max-failure-count", "--report-setup-run-url"),
    ],
    "send": ["--queue", "-i", "--json", "--redis-url", "--output"],
    "predict": ["-i", "--json", "--python"],
    "init": ["FOLDER"],
    "install": ["MODEL_DIR", "--with"],
    "schema": ["MODEL_DIR", "--python", "--model-env"],
    "cancel": ["--queue", "--redis-url"],
    "check": ["--redis-url", "--broker-url", "--output"],
    "dead": ["list", "show", "retry", "drop"],
    "health": ["--queue", "--name", "--heartbeat-file", "--role", "--ready", "--output"],
    "status": ["ID", "--queue", "--redis-url", "--watch", "--every", "--output"],
}


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli.cli, arguments, env={"COG_CELERY_QUEUE": None, "REDIS_URL": None, **(env or {})})


@pytest.mark.parametrize("command", CONTRACT)
def test_every_command_has_its_options_and_an_example(command: str) -> None:
    help = invoke(command, "--help")
    assert help.exit_code == 0
    for option in CONTRACT[command]:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help.output), option
    assert f"cog-celery {command}" in help.output.partition("Examples:")[2]


def test_the_commands_are_these() -> None:
    assert set(CONTRACT) == {name for name, command in cli.cli.commands.items() if not command.hidden}
    assert invoke().exit_code == 2
    assert invoke("--version").output == f"cog-celery {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sned"], "there is no command 'sned'; did you mean send?"),
        (["send", "--quee", "q"], "--queue"),
        (["send"], "--queue or COG_CELERY_QUEUE"),
        (["send", "--queue", "a", "--queue", "b"], "got 2"),
        (["send", "--queue", "q-dead"], "--queue 'q-dead'"),
        (["send", "--queue", "q", "-i", "novalue"], "NAME=VALUE"),
        (["send", "--queue", "q", "-i", "image=@/nowhere/photo.jpg"], "/nowhere/photo.jpg: No such file"),
        (["send", "--queue", "q", "--json", "[1]"], "an object of inputs"),
        (["send", "--queue", "q", "--json", "{"], "--json is not JSON"),
        (["send", "--queue", "q", "--json", '{"a": NaN}'], "NaN"),
        (["send", "--queue", "q", "--output", "yaml"], "--output"),
        (["bridge"], "--queue"),
        (["worker", "--queue", "q"], "MODEL_DIR"),
        (["worker", "/nowhere", "--queue", "q"], "/nowhere: no such folder"),
        (["worker", str(ROOT / "tests"), "--queue", "q"], "no cog.yaml"),
        (["run", "/nowhere"], "/nowhere: no such folder"),
        (["predict"], "MODEL_DIR"),
        (["bridge", "--queue", "q", "--lease", "soon"], "--lease 'soon'"),
        (["cancel", "--queue", "q"], "ID"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_line(arguments: list[str], told: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert result.output.startswith("cog-celery: ")
    assert result.output.count("\n") == 1


def test_a_wrong_variable_is_named_whatever_the_command() -> None:
    result = invoke("cancel", "x", "--queue", "q", env={"COG_CELERY_DIALEKT": "cog-0.4"})
    assert result.exit_code == 2
    assert (
        result.output == "cog-celery: COG_CELERY_DIALEKT: there is no such setting; did you mean COG_CELERY_DIALECT?\n"
    )


def test_help_comes_at_once_and_imports_no_celery_and_no_redis() -> None:
    code = "import sys, cog_celery.cli.main; print(*{'celery', 'kombu', 'redis', 'rich'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "cog_celery", "--help"], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_the_table_of_options_lists_every_option_once() -> None:
    result = invoke("options", "--markdown")
    assert result.exit_code == 0
    rows = result.output.splitlines()[2:]
    assert len(rows) == len(OPTIONS)
    for option, row in zip(OPTIONS, rows, strict=True):
        assert option.flag in row
        assert all(f"`{variable}`" in row for variable in option.variables)
        assert len(re.split(r"(?<!\\)\|", row)) == 6


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://127.0.0.1:7001/0", "redis-cli -p 7001 XADD"),
        ("redis://user:hunter2@redis.example/3", "redis-cli -h redis.example -p 6379 -n 3 XADD"),
        ("rediss://redis.example:7002", "redis-cli -h redis.example -p 7002 --tls XADD"),
        ("unix:///run/my%20redis.sock?db=1", "redis-cli -s '/run/my redis.sock' -n 1 XADD"),
    ],
)
def test_the_line_to_paste_is_for_this_server_and_has_no_password(url: str, command: str) -> None:
    text = fleet.how_to_send(Settings(queues=("my queue",), redis_url=url))
    assert f"{command} 'my queue' '*' value '{{\"input\":{{}},\"response_queue\":\"my queue-response\"}}'" in text
    assert "GET 'my queue-response'" in text
    assert "hunter2" not in text


def test_the_line_to_paste_has_an_example_of_every_input_that_the_model_must_have() -> None:
    inputs = [("text", "str"), ("image", "Path"), ("count", "int"), ("tags", "List[str]")]
    text = fleet.how_to_send(Settings(queues=("q",), redis_url="redis://127.0.0.1:7001"), inputs)
    message = (
        '{"input":{"text":"text","image":"https://example.com/file","count":1,"tags":[]},"response_queue":"q-response"}'
    )
    assert f"'{message}'" in text
    assert "send --queue q -i text=text -i image=https://example.com/file -i count=1 -i 'tags=[]'" in text


def test_check_judges_a_server_that_is_not_there_and_an_interpreter(tmp_path: Path) -> None:
    result = invoke("check", "--redis-url", "redis://:hunter2@127.0.0.1:1", "--python", sys.executable)
    assert result.exit_code == 1
    findings = {finding["subject"]: finding for finding in json.loads(result.output)}
    assert findings["redis"]["verdict"] == "fail"
    assert findings["redis"]["advice"]
    assert findings["python"]["verdict"] == "ok"
    assert "hunter2" not in result.output

    impostor = tmp_path / "python"
    impostor.write_text("#!/bin/sh\necho cpython 3 8 0\n")
    impostor.chmod(0o755)
    result = invoke("check", "--redis-url", "redis://127.0.0.1:1", "--python", str(impostor))
    assert json.loads(result.output)[-1] == {
        "subject": "python",
        "verdict": "fail",
        "found": f"cpython 3.8.0 at {impostor}",
        "advice": "name a CPython 3.9 to 3.14 with --python",
    }
