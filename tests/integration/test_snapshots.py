"""What a consumer of a response key sees: the exact sequence of SETs for each kind of prediction."""

from __future__ import annotations

import base64
import json
from itertools import pairwise, takewhile
from typing import Any

import pytest

from tests.support.fleet import Fleet
from tests.support.monitor import Monitor
from tests.support.producer import TIMESTAMPS, Producer, bare, failed, processing, succeeded

pytestmark = pytest.mark.every_server


def data_uri(text: str, kind: str = "text/plain") -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def statuses(sequence: list[dict[str, Any]]) -> list[str]:
    return [snapshot["status"] for snapshot in sequence]


def test_a_single_value_is_shown_in_the_terminal_snapshot_only(producer: Producer, monitor: Monitor) -> None:
    assert producer.sequence(monitor, {"mode": "hello"}) == [processing(), succeeded("hello world")]


def test_the_start_snapshot_and_the_terminal_one_have_exactly_the_documented_keys(
    producer: Producer, monitor: Monitor
) -> None:
    start, end = (snapshot.value for snapshot in producer.history(monitor, producer.send({"mode": "hello"})))
    assert set(start) == {"status", "output", "logs", TIMESTAMPS}
    assert set(start[TIMESTAMPS]) == {"started_at"}
    assert set(end) == {"status", "output", "logs", TIMESTAMPS}
    assert set(end[TIMESTAMPS]) == {"started_at", "completed_at"}
    assert start[TIMESTAMPS]["started_at"] == end[TIMESTAMPS]["started_at"]


@pytest.mark.parametrize("text", ["0", '""', "[]", "false", "null", "{}", "0.0"])
def test_a_falsy_output_is_an_output(producer: Producer, monitor: Monitor, text: str) -> None:
    assert producer.sequence(monitor, {"mode": "json", "text": text}) == [processing(), succeeded(json.loads(text))]


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, {"b": "ü"}]}, "line\nbreak \u2028 \x7f", [[], {}], 2**53, "😀"])
def test_any_json_output_arrives_as_it_is(producer: Producer, value: Any) -> None:
    assert producer.predict({"mode": "json", "text": json.dumps(value)}) == succeeded(value)


@pytest.mark.ours
def test_a_file_without_an_upload_url_is_a_data_uri(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "a_file", "text": "content"})
    assert sequence == [processing(), succeeded(data_uri("content"))]


@pytest.mark.ours
def test_a_model_is_an_object_and_its_files_are_urls(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "model", "text": "content"})
    assert sequence == [processing(), succeeded({"text": "content", "file": data_uri("content")})]


def assert_at_once(producer: Producer, monitor: Monitor, input: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """What comes without a pause. On a busy machine there may be one, and then a snapshot more: not five times."""
    sequences = (producer.sequence(monitor, input) for _ in range(5))
    seen = list(takewhile(lambda sequence: sequence != expected, sequences))
    assert len(seen) < 5, seen


@pytest.mark.ours
def test_yields_without_a_pause_share_one_set(producer: Producer, monitor: Monitor) -> None:
    everything = ["y 0", "y 1", "y 2"]
    assert_at_once(
        *(producer, monitor, {"mode": "yields", "text": "y", "count": 3}),
        [processing(), processing(everything), succeeded(everything)],
    )


def test_yields_with_pauses_get_a_set_each(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "yields", "text": "y", "count": 3, "seconds": 0.4})
    assert sequence == [
        processing(),
        processing(["y 0"]),
        processing(["y 0", "y 1"]),
        processing(["y 0", "y 1", "y 2"]),
        succeeded(["y 0", "y 1", "y 2"]),
    ]


def test_a_generator_that_yields_nothing_has_an_empty_list_as_output(producer: Producer, monitor: Monitor) -> None:
    assert producer.sequence(monitor, {"mode": "yields", "count": 0}) == [processing(), succeeded([])]


def test_falsy_yields_are_outputs(producer: Producer) -> None:
    values = [0, "", [], False, {}]
    assert producer.predict({"mode": "yields_json", "text": json.dumps(values)}) == succeeded(values)


@pytest.mark.ours
def test_yielded_files_appear_as_they_are_yielded(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "yields_files", "text": "f", "count": 3, "seconds": 0.4})
    urls = [data_uri(f"f {i}") for i in range(3)]
    assert sequence == [
        processing(),
        processing(urls[:1]),
        processing(urls[:2]),
        processing(urls),
        succeeded(urls),
    ]


def test_a_failure_shows_its_traceback_first_and_keeps_it(producer: Producer, monitor: Monitor) -> None:
    start, logged, end = producer.sequence(monitor, {"mode": "fails", "text": "no luck"})
    assert start == processing()
    assert logged == processing(logs=logged["logs"])
    assert logged["logs"][0] == "Traceback (most recent call last):"
    assert logged["logs"][-1] == "ValueError: no luck"
    assert end == failed("no luck", logs=logged["logs"])


@pytest.mark.ours
def test_the_traceback_names_the_models_own_lines_and_none_of_ours(producer: Producer) -> None:
    response = producer.predict({"mode": "fails", "text": "no luck"})
    files = [line for line in response["logs"] if line.lstrip().startswith("File ")]
    assert files and all("modes" in line and "predict.py" in line for line in files), response["logs"]


@pytest.mark.ours
def test_an_exception_without_a_text_is_named_by_its_repr(producer: Producer) -> None:
    response = producer.predict({"mode": "fails", "text": ""})
    assert response["status"] == "failed"
    # ValueError("") has an argument, so that is what its repr says.
    assert response["error"] == "ValueError('')"


def test_a_failure_after_output_keeps_the_output(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "fails_after_output", "text": "no luck", "seconds": 0.4})
    start, partial, logged, end = sequence
    assert start == processing()
    assert partial == processing(["partial"])
    assert logged == processing(["partial"], logged["logs"])
    assert logged["logs"][-1] == "ValueError: no luck"
    assert end == failed("no luck", ["partial"], logged["logs"])


def test_the_next_prediction_after_a_failure_succeeds_with_clean_logs(producer: Producer) -> None:
    assert producer.predict({"mode": "fails", "text": "no luck"})["status"] == "failed"
    assert producer.predict({"mode": "prints", "text": "next", "count": 1}) == succeeded("printed", ["next 0"])


def test_a_refused_input_is_exactly_one_set(producer: Producer, monitor: Monitor) -> None:
    request = producer.send({"mode": "hello", "count": "many"})
    history = producer.history(monitor, request)
    assert [snapshot.value for snapshot in history] == [
        {
            "status": "failed",
            "output": None,
            "logs": [],
            "error": "1 validation error for Input\ncount\n  value is not a valid integer (type=type_error.integer)",
        }
    ]


def test_every_field_at_fault_is_listed_in_order(producer: Producer) -> None:
    response = producer.wait(producer.send({"count": -1, "seconds": "soon"}))
    assert response["error"].split("\n") == [
        "3 validation errors for Input",
        "mode",
        "  field required (type=value_error.missing)",
        "count",
        "  ensure this value is greater than or equal to 0 (type=value_error.number.not_ge; limit_value=0)",
        "seconds",
        "  value is not a valid float (type=type_error.float)",
    ]


def test_a_missing_or_null_input_is_an_empty_one(producer: Producer, modes: Fleet) -> None:
    expected = "1 validation error for Input\nmode\n  field required (type=value_error.missing)"
    missing = json.dumps({"response_queue": f"{modes.queue}-missing"})
    null = json.dumps({"input": None, "response_queue": f"{modes.queue}-null"})
    if modes.shape == "peer":
        pytest.skip("Cog leaves such a message pending for ever")
    producer.send_raw(missing)
    producer.send_raw(null)
    assert producer.wait(f"{modes.queue}-missing")["error"] == expected
    assert producer.wait(f"{modes.queue}-null")["error"] == expected


def test_numbers_and_booleans_may_be_strings_as_forms_send_them(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "yields", "text": "y", "count": "2", "seconds": "0"})
    assert sequence[-1] == succeeded(["y 0", "y 1"])


# Logs


def test_each_burst_of_logs_gets_a_set(producer: Producer, monitor: Monitor) -> None:
    sequence = producer.sequence(monitor, {"mode": "prints", "text": "line", "count": 2, "seconds": 0.4})
    assert sequence == [
        processing(),
        processing(logs=["line 0"]),
        processing(logs=["line 0", "line 1"]),
        succeeded("printed", ["line 0", "line 1"]),
    ]


@pytest.mark.ours
def test_logs_back_to_back_share_one_set(producer: Producer, monitor: Monitor) -> None:
    lines = [f"line {i}" for i in range(20)]
    assert_at_once(
        *(producer, monitor, {"mode": "prints", "text": "line", "count": 20}),
        [processing(), processing(logs=lines), succeeded("printed", lines)],
    )


@pytest.mark.ours
def test_logs_and_output_back_to_back_share_one_set(producer: Producer, monitor: Monitor) -> None:
    everything = ["x 0", "x 1", "x 2"]
    assert_at_once(
        *(producer, monitor, {"mode": "prints_and_yields", "text": "x", "count": 3}),
        [processing(), processing(everything, everything), succeeded(everything, everything)],
    )


def test_logs_of_c_code_are_logs(producer: Producer) -> None:
    assert producer.predict({"mode": "puts", "text": "from C"}) == succeeded("put", ["from C"])


def test_logs_of_subprocesses_are_logs(producer: Producer) -> None:
    response = producer.predict({"mode": "runs", "text": "echo out; sleep 0.05; echo err >&2; exit 3"})
    assert response == succeeded(3, ["out", "err"])


def test_setup_and_import_output_is_no_log_of_a_prediction(producer: Producer) -> None:
    assert "setup of modes" not in producer.predict({"mode": "prints"})["logs"]


def writes(*pieces: tuple[bytes, float, int]) -> str:
    """The text of mode `writes`; a piece is bytes, the pause after it in seconds, its file descriptor."""
    return json.dumps([[fd, data.hex(), seconds] for data, seconds, fd in pieces])


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\n\n  two  \n\r10%\r20%\n", ["one", "", "  two", "", "10%", "20%"]),
        (b"no end", ["no end"]),
        (b"dos\r\nlines\r\n", ["dos", "lines"]),
        (b"10%\r50%\r100%\n", ["10%", "50%", "100%"]),
        (b"\xff\xfe bad\n", ["\ufffd\ufffd bad"]),
        ("ü 😀 \u2028 one line\n".encode(), ["ü 😀 \u2028 one line"]),
    ],
)
@pytest.mark.ours
def test_lines_are_split_as_documented(producer: Producer, data: bytes, lines: list[str]) -> None:
    assert producer.predict({"mode": "writes", "text": writes((data, 0, 1))}) == succeeded("written", lines)


@pytest.mark.ours
def test_a_character_split_between_two_writes_is_one_character(producer: Producer) -> None:
    face = "😀".encode()
    text = writes((b"a " + face[:2], 0.1, 1), (face[2:] + b" z\n", 0, 1))
    assert producer.predict({"mode": "writes", "text": text}) == succeeded("written", ["a 😀 z"])


@pytest.mark.ours
def test_a_line_end_split_between_two_writes_is_one_line_end(producer: Producer) -> None:
    text = writes((b"one\r", 0.1, 1), (b"\ntwo\n", 0, 1))
    assert producer.predict({"mode": "writes", "text": text}) == succeeded("written", ["one", "two"])


@pytest.mark.ours
def test_standard_output_and_error_do_not_break_into_each_others_lines(producer: Producer) -> None:
    text = writes((b"out ", 0, 1), (b"err ", 0, 2), (b"put\n", 0, 1), (b"or\n", 0, 2))
    response = producer.predict({"mode": "writes", "text": text})
    assert sorted(response["logs"]) == ["err or", "out put"]


@pytest.mark.ours
def test_progress_is_shown_while_it_goes(producer: Producer, monitor: Monitor) -> None:
    text = writes((b"10%\r", 0.4, 1), (b"20%\r", 0.4, 1), (b"done\n", 0, 1))
    sequence = producer.sequence(monitor, {"mode": "writes", "text": text})
    assert statuses(sequence)[-1] == "succeeded"
    assert sequence[0]["logs"] == []
    assert ["10%"] in [snapshot["logs"] for snapshot in sequence]
    assert ["10%", "20%"] in [snapshot["logs"] for snapshot in sequence]
    assert sequence[-1]["logs"] == ["10%", "20%", "done"]


# Cost


@pytest.mark.ours
def test_a_thousand_yields_cost_about_the_bytes_of_a_few_snapshots(producer: Producer, monitor: Monitor) -> None:
    request = producer.send({"mode": "prints_and_yields", "text": "x" * 20, "count": 1000})
    history = producer.history(monitor, request)
    assert len(history[-1].value["output"]) == len(history[-1].value["logs"]) == 1000
    assert sum(snapshot.size for snapshot in history) <= 5 * history[-1].size


@pytest.mark.ours
def test_the_cost_of_a_long_stream_grows_with_its_output_not_with_its_square(
    producer: Producer, monitor: Monitor
) -> None:
    """300 yields 5 ms apart are one endless burst, or hundreds: neither may send each of them 300 times."""
    request = producer.send({"mode": "yields", "text": "x" * 2000, "count": 300, "seconds": 0.005})
    history = producer.history(monitor, request)
    assert len(history[-1].value["output"]) == 300
    assert history[1].time - history[0].time < 1.0, "the first output was kept back"
    assert sum(snapshot.size for snapshot in history) <= 20 * history[-1].size


@pytest.mark.ours
def test_every_snapshot_is_complete(producer: Producer, monitor: Monitor) -> None:
    """Each one begins with all of the one before it: nothing is dropped or reordered."""
    history = producer.history(monitor, producer.send({"mode": "prints_and_yields", "count": 40, "seconds": 0.01}))
    for before, after in pairwise(history):
        for part in ("output", "logs"):
            old, new = before.value[part] or [], after.value[part] or []
            assert new[: len(old)] == old
    assert bare(history[-1].value) == succeeded(*[[f"world {i}" for i in range(40)]] * 2)
