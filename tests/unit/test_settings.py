from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given as holds_for
from hypothesis import strategies as st

from cog_celery.errors import UsageError
from cog_celery.settings import (
    DIALECTS,
    OPTION,
    OPTIONS,
    OUTPUT_URLS,
    S3_MODES,
    UPLOAD_MODES,
    Settings,
    default_name,
    default_queue,
    masked_url,
    parse_queue,
)


def refusal(flags: dict[str, object] | None = None, env: dict[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        Settings.load(flags or {}, env or {})
    return str(caught.value)


def test_nothing_given_is_the_defaults() -> None:
    settings = Settings.load({}, {})
    assert settings == Settings()
    assert settings.redis_url == settings.broker_url == "redis://localhost:6379/0"
    assert settings.name == default_name()
    assert settings.python == "", "the model's folder says which"


def test_every_field_has_an_option_and_a_variable_of_its_own() -> None:
    assert [field.name for field in msgspec.structs.fields(Settings)] != []
    assert {field.name for field in msgspec.structs.fields(Settings)} == {option.name for option in OPTIONS}
    variables = [variable for option in OPTIONS for variable in option.variables]
    assert len(variables) == len(set(variables))
    assert all(option.variables[0].startswith("COG_CELERY_") for option in OPTIONS)


def test_a_flag_wins_over_a_variable() -> None:
    assert Settings.load({"lease": "3"}, {"COG_CELERY_LEASE": "4"}).lease == 3
    assert Settings.load({"lease": None, "queues": ()}, {"COG_CELERY_LEASE": "4"}).lease == 4
    assert Settings.load({"create_group": True}, {"COG_CELERY_CREATE_GROUP": "no"}).create_group


def test_the_package_s_own_variable_wins_over_redis_url() -> None:
    env = {"REDIS_URL": "redis://one", "COG_CELERY_REDIS_URL": "redis://two"}
    assert Settings.load({}, env).redis_url == "redis://two"
    assert Settings.load({}, {"REDIS_URL": "redis://one"}).redis_url == "redis://one"


def test_an_empty_variable_is_not_set_and_white_space_around_values_does_not_count() -> None:
    env = {"COG_CELERY_GPUS": "", "COG_CELERY_SLOTS": " ", "COG_CELERY_REDIS_URL": "redis://:secret@host/1\n"}
    settings = Settings.load({}, env)
    assert (settings.gpus, settings.slots, settings.redis_url) == (None, 1, "redis://:secret@host/1")


def test_names_in_a_variable_are_separated_by_commas() -> None:
    env = {"COG_CELERY_QUEUE": "a, b,,a", "COG_CELERY_MODEL_ENV": "HF_TOKEN,HF_HOME"}
    settings = Settings.load({}, env)
    assert settings.queues == ("a", "b")
    assert settings.model_env == ("HF_TOKEN", "HF_HOME")


@pytest.mark.parametrize(
    ("flags", "env", "told"),
    [
        ({}, {"COG_CELERY_LEAS": "1"}, ["COG_CELERY_LEAS", "did you mean COG_CELERY_LEASE?"]),
        ({}, {"COG_CELERY_PYTHON": "python"}, ["COG_CELERY_PYTHON", "COG_CELERY_MODEL_PYTHON"]),
        ({}, {"COG_CELERY_QUEUES": "a"}, ["COG_CELERY_QUEUES", "COG_CELERY_QUEUE?"]),
        ({"dialect": "cog-0.5"}, {}, ["--dialect", "'cog-0.5'", "cog-0.4, cog-0.6"]),
        ({}, {"COG_CELERY_UPLOAD_MODE": "multi"}, ["COG_CELERY_UPLOAD_MODE", "'multi'", "mean multipart?"]),
        ({"lease": "ten"}, {}, ["--lease", "'ten'", "number of seconds"]),
        ({"lease": "0"}, {}, ["--lease", "at least 0.1"]),
        ({"turn": "-1"}, {}, ["--turn", "'-1'"]),
        ({"turn": "nan"}, {}, ["--turn"]),
        ({"predict_timeout": "inf"}, {}, ["--predict-timeout"]),
        ({"predict_timeout": "0"}, {}, ["--predict-timeout"]),
        ({"slots": "0"}, {}, ["--slots", "at least 1"]),
        ({"slots": "1.5"}, {}, ["--slots", "whole number"]),
        ({"max_attempts": "-3"}, {}, ["--max-attempts"]),
        ({"max_log_bytes": "4 parsecs"}, {}, ["--max-log-bytes", "16MiB"]),
        ({}, {"COG_CELERY_CREATE_GROUP": "perhaps"}, ["COG_CELERY_CREATE_GROUP", "true or false"]),
        ({"redis_url": "http://host"}, {}, ["--redis-url", "redis://"]),
        ({"redis_url": "redis:host"}, {}, ["--redis-url"]),
        ({"redis_url": "redis://host:port"}, {}, ["--redis-url", "port"]),
        ({"redis_url": "redis://host/first"}, {}, ["--redis-url", "number of a database"]),
        ({"redis_url": "unix://"}, {}, ["--redis-url", "socket"]),
        ({"broker_url": "rabbit"}, {}, ["--broker-url"]),
        ({"upload_url": "s4://bucket"}, {}, ["--upload-url", "s3://"]),
        ({"upload_url": "s3://user:word@bucket"}, {}, ["--upload-url", "bucket's name", "s3://bucket/prefix"]),
        ({"upload_url": "s3://bucket/a?b"}, {}, ["--upload-url", "neither ? nor #"]),
        ({"upload_url": "s3://bucket", "upload_mode": "put"}, {}, ["--upload-mode put", "http(s)://", "--upload-url"]),
        ({"upload_mode": "presigned"}, {}, ["--upload-mode presigned", "s3://", "--upload-url"]),
        ({"upload_key": "{name}"}, {}, ["--upload-key", "{id}", "{entry}"]),
        ({"upload_key": "{id}/{nam}"}, {}, ["--upload-key", "did you mean name?"]),
        ({"upload_key": "{id}/{name!r}"}, {}, ["--upload-key", "no format"]),
        ({"upload_key": "{id}/{name"}, {}, ["--upload-key", "not closed"]),
        ({"output_url": "presined"}, {}, ["--output-url", "did you mean presigned?"]),
        ({"output_url": "https://cdn/?a=b"}, {}, ["--output-url", "neither ? nor #"]),
        ({"output_url_lifetime": "604801"}, {}, ["--output-url-lifetime", "604800"]),
        ({"model_env": ("TOKEN=1",)}, {}, ["--model-env", "without its value"]),
        ({"slots": "2", "gpus": "0"}, {}, ["--slots", "--gpus"]),
        ({"slots": "2"}, {"COG_CELERY_GPUS": "0"}, ["--slots", "COG_CELERY_GPUS"]),
        ({"gpus": "0", "slots_per_gpu": "2", "gpus_per_slot": "2"}, {}, ["--slots-per-gpu", "--gpus-per-slot"]),
        ({"slots_per_gpu": "2"}, {}, ["--slots-per-gpu", "--gpus"]),
        ({"log_level": "loud"}, {}, ["--log-level", "debug"]),
    ],
)
def test_what_is_wrong_is_named_with_the_right_one(
    flags: dict[str, object], env: dict[str, str], told: list[str]
) -> None:
    message = refusal(flags, env)
    assert all(part in message for part in told), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name",
    ["", "a\0b", "a\nb", "a\x9bb", "ü" * 101, "cog-celery:q", "q-dead", "q-run-time", "q-setup-time", "a,b", "\ud800"],
)
def test_a_queue_s_name_cannot_collide_with_other_keys_or_break_a_line(name: str) -> None:
    with pytest.raises(ValueError):
        parse_queue(name)


def test_a_wrong_queue_among_several_is_the_one_that_is_named() -> None:
    assert "'bad-dead'" in refusal({"queues": ("good", "bad-dead")})


def test_gpus_none_goes_with_slots() -> None:
    settings = Settings.load({"gpus": "none", "slots": "3"}, {})
    assert (settings.gpus, settings.slots) == ("none", 3)


def test_variables_that_kubernetes_makes_for_a_service_are_not_settings() -> None:
    env = {
        "COG_CELERY_SERVICE_HOST": "10.0.0.1",
        "COG_CELERY_PORT": "tcp://10.0.0.1:6379",
        "COG_CELERY_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "COG_CELERY_REDIS_SERVICE_PORT_METRICS": "9121",
    }
    assert "COG_CELERY_PORT" in refusal({}, env)
    inside = {**env, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert Settings.load({}, inside) == Settings()
    assert "COG_CELERY_SLOT:" in refusal({}, {**inside, "COG_CELERY_SLOT": "1"})


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://user:{SECRET}@host:1/2?password={SECRET}", "redis://***@host:1/2?***"),
        (f"redis://:{SECRET}/with:slash@host", "redis://***@host"),
        (f"amqp://u:{SECRET}@a;amqp://u:{SECRET}@b", "amqp://***@a;amqp://***@b"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?***"),
        (f"u:{SECRET}@host", "***@host"),
        (f"https://host/path?token={SECRET}#{SECRET}", "https://host/path?***"),
    ],
)
def test_a_shown_url_has_no_credentials_and_no_query(url: str, shown: str) -> None:
    assert masked_url(url) == shown


def test_settings_and_errors_show_no_secret() -> None:
    flags: dict[str, object] = {
        "redis_url": f"rediss://user:{SECRET}@host",
        "broker_url": f"amqp://user:{SECRET}@host//",
        "upload_url": f"https://host/up?token={SECRET}",
        "report_setup_run_url": f"https://{SECRET}@host/setup",
    }
    assert SECRET not in repr(Settings.load(flags, {}))
    assert SECRET not in str(Settings.load(flags, {}))
    for name in flags:
        for broken in (f"ftp//x:{SECRET}@host?{SECRET}", f"://:{SECRET}@host"):
            assert SECRET not in refusal({name: broken})
    assert SECRET not in refusal({"redis_url": f"redis://:{SECRET}@host:port"})


def test_the_broker_follows_redis_unless_it_is_another_server() -> None:
    assert Settings.load({"redis_url": "redis://a"}, {}).with_redis("redis://b").broker_url == "redis://b"
    apart = Settings.load({"redis_url": "redis://a", "broker_url": "amqp://c"}, {}).with_redis("redis://b")
    assert (apart.redis_url, apart.broker_url) == ("redis://b", "amqp://c")


def test_a_bridge_needs_a_queue_and_a_worker_exactly_one() -> None:
    with pytest.raises(UsageError, match="--queue or COG_CELERY_QUEUE"):
        Settings().for_bridge()
    with pytest.raises(UsageError, match="got 2: a, b"):
        _ = Settings(queues=("a", "b")).queue


def test_a_model_s_folder_and_interpreter_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "bin").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="did you mean model"):
        Settings(model_dir="mode").for_model()
    with pytest.raises(UsageError, match=r"cog\.yaml"):
        Settings(model_dir="model").for_model()
    (tmp_path / "model" / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    with pytest.raises(UsageError, match="COG_CELERY_MODEL_PYTHON"):
        Settings(model_dir="model", python="model/bin/python").for_model()
    link = tmp_path / "model" / "bin" / "python"
    link.symlink_to(sys.executable)
    found = Settings(model_dir="model", python="model/bin/python").for_model()
    assert found.model_dir == str(tmp_path / "model")
    assert found.python == str(link), "a virtual environment's interpreter must stay the link that it is"


def test_a_queue_can_be_named_after_a_folder() -> None:
    assert default_queue("/models/my model (2)/") == "my-model-2"
    with pytest.raises(UsageError, match="--queue"):
        default_queue("/models/---")


seconds = st.floats(min_value=0.1, max_value=1e6, allow_nan=False)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters=","), min_size=1, max_size=50
)


def acceptable(name: str) -> bool:
    try:
        return parse_queue(name) == name
    except ValueError:
        return False


some_settings = st.builds(
    Settings,
    queues=st.lists(names.filter(acceptable), max_size=3, unique=True).map(tuple),
    redis_url=st.sampled_from(["redis://localhost:6379/0", "redis://:p%40ss,word@host/3", "unix:///run/r.sock?db=1"]),
    broker_url=st.sampled_from(["", "amqp://a;amqp://b"]),
    name=names,
    create_group=st.booleans(),
    model_dir=st.none() | names,
    slots=st.integers(1, 99),
    model_env=st.sampled_from([(), ("A",), ("A", "B_2")]),
    turn=st.just(0.0) | seconds,
    lease=st.none() | seconds,
    max_attempts=st.none() | st.integers(1, 99),
    dialect=st.sampled_from([None, *DIALECTS]),
    predict_timeout=st.none() | seconds,
    max_failure_count=st.none() | st.integers(0, 99),
    upload_url=st.sampled_from([None, "https://host/a?b=c"]),
    upload_mode=st.sampled_from([mode for mode in UPLOAD_MODES if mode not in S3_MODES]),
    output_url=st.sampled_from([*OUTPUT_URLS, "https://cdn/files"]),
    max_log_bytes=st.integers(1, 1 << 42),
)


@holds_for(some_settings)
def test_the_variables_of_settings_make_the_same_settings(settings: Settings) -> None:
    assert Settings.load({}, settings.to_env()) == settings


def test_a_child_gets_these_settings_whatever_variables_its_parent_had() -> None:
    env = {"PATH": "/bin", "REDIS_URL": "redis://other", "COG_CELERY_SLOTS": "7"}
    settings = Settings.load({"slots": "1", "redis_url": "redis://one"}, env)
    child = settings.child_env(env)
    assert child["PATH"] == "/bin"
    assert "REDIS_URL" not in child
    assert Settings.load({}, child) == settings
    settings.install(env)
    assert env == child


def test_the_shown_defaults_can_be_given() -> None:
    for option in OPTIONS:
        if option.default is None and option.shown_default:
            kind = OPTION[option.name].kind
            given = Settings.load(
                {option.name: option.shown_default, **({"gpus": "0"} if "gpu" in option.name else {})}, {}
            )
            assert kind.write(getattr(given, option.name)) == option.shown_default
