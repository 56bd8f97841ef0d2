from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cog_celery.errors import UsageError
from cog_celery.redis_queue import parse
from cog_celery.settings import Settings

ROOT = Path(__file__).parents[2]
POSITIONS = ["redis-host", "6380", "my-queue", "", "my-worker", "my-model", "my-logs", "60"]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # without the environments of whoever runs this
    return tmp_path


def test_positions_mean_what_they_mean_to_cog(model: Path) -> None:
    expected = Settings(
        queues=("my-queue",),
        redis_url="redis://redis-host:6380/0",
        name="my-worker",
        model_id="my-model",
        log_queue="my-logs",
        predict_timeout=60.0,
        create_group=False,
        model_dir=str(model),
        python=sys.executable,
    )
    assert parse(POSITIONS, {}) == expected


def test_the_same_as_flags(model: Path) -> None:
    flags = [
        *("--redis-host", "redis-host", "--redis-port=6380", "--input-queue", "my-queue", "--upload-url", ""),
        *("--consumer-id", "my-worker", "--model-id", "my-model", "--log-queue", "my-logs", "--predict-timeout", "60"),
    ]
    assert parse(flags, {}) == parse(POSITIONS, {})


def test_seven_arguments_are_accepted() -> None:
    settings = parse(POSITIONS[:7], {})
    assert (settings.model_id, settings.log_queue, settings.predict_timeout) == ("my-model", "my-logs", None)


def test_flags_win_over_positions_and_both_over_variables() -> None:
    env = {"COG_CELERY_QUEUE": "of-env", "COG_CELERY_PREDICT_TIMEOUT": "1", "REDIS_URL": "redis://env"}
    settings = parse([*POSITIONS, "--predict-timeout", "5", "--redis-url", "redis://flag/2"], env)
    assert (settings.queues, settings.predict_timeout) == (("my-queue",), 5.0)
    assert settings.redis_url == "redis://flag/2"
    assert parse(POSITIONS[:7], env).predict_timeout == 1.0


def test_every_variable_is_obeyed() -> None:
    env = {"COG_CELERY_DIALECT": "cog-0.6", "COG_CELERY_CREATE_GROUP": "true", "COG_CELERY_SLOTS": "2"}
    settings = parse([*POSITIONS, "--report-setup-run-url", "https://host/setup", "--max-failure-count", "3"], env)
    assert (settings.dialect, settings.create_group, settings.slots) == ("cog-0.6", True, 2)
    assert (settings.report_setup_run_url, settings.max_failure_count) == ("https://host/setup", 3)


def test_hosts_may_be_ipv6() -> None:
    assert parse(["::1", *POSITIONS[1:]], {}).redis_url == "redis://[::1]:6380/0"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "redis_host and redis_port"),
        (POSITIONS[:2], "--queue"),
        ([*POSITIONS, "nine"], "at most 8"),
        (["host", "port", *POSITIONS[2:]], "redis_port 'port'"),
        ([*POSITIONS[:7], "soon"], "--predict-timeout 'soon'"),
        ([*POSITIONS, "--queue", "x"], "--queue"),
    ],
)
def test_wrong_use_is_named(arguments: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse(arguments, {})


def test_a_model_s_modules_do_not_shadow_ours(model: Path) -> None:
    for name in ("redis", "queue", "argparse", "click", "msgspec", "celery", "logging", "typing"):
        (model / f"{name}.py").write_text("raise SystemExit('the model was imported')")
    command = [sys.executable, "-m", "cog_celery.redis_queue", *POSITIONS[:7], "soon"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=model, env=env, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("cog-celery: --predict-timeout 'soon'")
