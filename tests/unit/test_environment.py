"""Which variables a model's process gets."""

from __future__ import annotations

import pytest

from cog_celery.runners.environment import model_environment


@pytest.mark.parametrize(
    "name",
    [
        *("REDIS_URL", "COG_CELERY_REDIS_URL", "CELERY_BROKER_URL", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"),
        *("WEBHOOK_AUTH_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS", "HF_TOKEN", "DB_PASSWORD", "MY_API_KEY", "SENTRY_DSN"),
        *("COGCELERY_X", "COG_CELERY_X", "OTEL_SERVICE_NAME", "aws_profile", "redis_host", "Celery_App"),
        *("my_secret_name", "Token", "tokens", "pgpassword", "MYSQL_PWD", "SMTP_PASS", "KEY_PASSPHRASE", "SIGNING_KEY"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING", "SSH_AUTH_SOCK", "SESSION_COOKIE"),
    ],
)
def test_no_credential_reaches_a_model_unless_it_is_named(name: str) -> None:
    assert name not in model_environment({name: "x"})[0]
    assert model_environment({name: "x"}, keep=[name])[0] == {name: "x"}


def test_a_url_with_a_user_is_a_credential_whatever_its_name() -> None:
    environ = {
        "PROXY": "http://user:secret@proxy:3128",
        "SERVERS": "amqp://one;amqp://:secret@two",
        "SITE": "http://proxy:3128",
    }
    given, withheld = model_environment(environ)
    assert given == {"SITE": "http://proxy:3128"}
    assert withheld == ["PROXY", "SERVERS"]


def test_all_else_is_passed_on_and_what_the_slot_adds_is_on_top() -> None:
    environ = {"PATH": "/bin", "LD_LIBRARY_PATH": "/lib", "COG_WEIGHTS": "w", "CUDA_VISIBLE_DEVICES": "0,1"}
    environ |= {"PWD": "/", "OLDPWD": "/", "KEYBOARD": "us", "MONKEY": "1", "HOSTPATH": "/", "COMPASS": "n"}
    given, withheld = model_environment(environ, extra={"CUDA_VISIBLE_DEVICES": "1", "OTHER": None})
    assert given == {**environ, "CUDA_VISIBLE_DEVICES": "1"}
    assert withheld == []


def test_variables_that_were_made_for_one_interpreter_do_not_reach_another() -> None:
    environ = {"PYTHONPATH": "/ours", "VIRTUAL_ENV": "/ours/.venv", "PYTHONHASHSEED": "0"}
    assert model_environment(environ)[0] == environ
    assert model_environment(environ, other_interpreter=True)[0] == {"PYTHONHASHSEED": "0"}
