"""The corpus of predictors in tests/corpus: what stands in a file's first lines, and what is heard of it.

It must not know how predictors are run.

A file begins with a line that says what it shows, then lines of these forms, each behind `# `:

    {"n": 3} -> 4                      an input, and the output
    {"n": 3} -> yields [1, 2]          what was yielded
    {"n": 3} -> refused: TEXT          the input's refusal, as the command line says it
    {"n": 3} -> failed: TEXT           the prediction's error
    {"n": 3} -> 4 metrics {"a": 1}     and its metrics
    {"n": 3} -> null files {"a": "…"}  and its files, by name, with their content
    refused: TEXT                      the predictor's refusal, in the line that ends with `# <- here`, if there is one
    raised: TEXT                       what loading it raises
    log: TEXT                          something in its log
    test inputs: {"n": 3}              what it offers to be run with
    schema Input.properties.n: {…}     a part of its schema, below components.schemas
    predictor: Name                    as what it is loaded; `Predictor` when nothing is said
    cog.yaml: key: value               a line of cog.yaml, which is then asked for the predictor
    environment: NAME=value
    slots: 2                           how many the worker would use; what it gets is `-> ready 2`
    python: 3.10                       the oldest Python that it can run on
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cog_celery.runtime.cog._runner.rendering import render_runtime

FOLDER = Path(__file__).parents[1] / "corpus"
_STEP = re.compile(r"(\{.*\}) -> (.*)")
_SCHEMA = re.compile(r"schema ([\w.]+): (.*)")
_HERE = "# <- here"


@dataclass
class Case:
    name: str
    file: Path
    title: str = ""
    steps: list[tuple[Any, str]] = field(default_factory=list)
    refused: str | None = None
    raised: str | None = None
    line: int | None = None
    logs: list[str] = field(default_factory=list)
    test_inputs: Any = None
    schema: dict[str, Any] = field(default_factory=dict)
    predictor: str = "Predictor"
    config: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    slots: int = 1
    granted: int = 1
    python: str = "3.9"

    def for_driver(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "file": str(self.file),
            "config": "".join(f"{line}\n" for line in self.config),
            "predict": None if self.config else f"predict.py:{self.predictor}",
            "environment": self.environment,
            "inputs": [given for given, _ in self.steps],
            "schema": bool(self.schema),
            "slots": self.slots,
        }


def read(file: Path) -> Case:
    """Raises ValueError for a line that is none of those above."""
    case = Case(f"{file.parent.name}/{file.stem}", file)
    lines = file.read_text().splitlines()
    case.title = lines[0].removeprefix("# ")
    for line in lines[1:]:
        if not line.startswith("# "):
            break
        _read_line(case, line.removeprefix("# "))
    here = [number for number, line in enumerate(lines, 1) if line.endswith(_HERE)]
    case.line = here[0] if here else None
    return case


def _read_line(case: Case, line: str) -> None:
    if step := _STEP.fullmatch(line):
        case.steps.append((json.loads(step[1]), step[2]))
        return
    if schema := _SCHEMA.fullmatch(line):
        case.schema[schema[1]] = json.loads(schema[2])
        return
    key, _, value = line.partition(": ")
    match key:
        case "refused":
            case.refused = value
        case "raised":
            case.raised = value
        case "log":
            case.logs.append(value)
        case "test inputs":
            case.test_inputs = json.loads(value)
        case "predictor":
            case.predictor = value
        case "cog.yaml":
            case.config.append(value)
        case "environment":
            name, _, text = value.partition("=")
            case.environment[name] = text
        case "slots":
            asked, _, granted = value.partition(" -> ready ")
            case.slots, case.granted = int(asked), int(granted or asked)
        case "python":
            case.python = value
        case _:
            raise ValueError(f"{case.name}: {line!r}")


def outcome(messages: list[dict[str, Any]]) -> str:
    """What was heard of a prediction, as a file says it."""
    last = messages[-1]
    if last["type"] == "refused":
        return "refused: " + " | ".join(render_runtime(last["errors"]).splitlines())
    if last["type"] != "done":
        return f"nothing but {messages}"
    if last["status"] == "failed":
        return f"failed: {last['error']}"
    if last["streamed"]:
        said = f"yields {_text([message['value'] for message in messages if message['type'] == 'output'])}"
    else:
        said = _text(last["output"])
    if "metrics" in last:
        said += f" metrics {_text(last['metrics'])}"
    files = [entry for message in messages for entry in message.get("files") or [] if isinstance(entry, dict)]
    if files:
        said += f" files {_text({entry['path']: entry['content'] for entry in files})}"
    return said


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


CASES = [read(file) for file in sorted(FOLDER.glob("*/*.py"))]
