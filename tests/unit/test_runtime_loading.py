"""Loading a predictor: cog.yaml, what is found, and what is refused with file, line and what to write instead."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest

from cog_celery.runtime.cog._runner.config import read_config
from cog_celery.runtime.cog._runner.refusal import Refused
from tests.support.bare_runner import PYTHONS, BareRunner, write_model
from tests.support.web import Web, reply

# -- cog.yaml


@pytest.mark.parametrize(
    ("text", "predict", "line", "concurrency"),
    [
        ('predict: "predict.py:Predictor"\n', "predict.py:Predictor", 1, 1),
        ("predict: predict.py:Predictor", "predict.py:Predictor", 1, 1),
        ("predict: 'it''s.py:Predictor'  # the model", "it's.py:Predictor", 1, 1),
        ("run: run.py:Runner # ours\r\n", "run.py:Runner", 1, 1),
        ('\ufeff"predict" : "a \\"b\\".py:P"', 'a "b".py:P', 1, 1),
        ("predict: src/my#model.py", "src/my#model.py", 1, 1),
        ("%YAML 1.2\n--- \n# comment\n\npredict: p.py:P\n...\nnonsense", "p.py:P", 5, 1),
        ("predict: p.py:P\n---\npredict: q.py:Q", "p.py:P", 1, 1),
        ('{"build": {"gpu": true}, "predict": "p.py:P", "concurrency": {"max": 4}}', "p.py:P", 1, 4),
        ("predict: p.py:P\nconcurrency:\n  # four\n  max: 4 # at once\n", "p.py:P", 1, 4),
        ("predict: p.py:P\nconcurrency: {max: 8}", "p.py:P", 1, 8),
        ("predict: p.py:P\nconcurrency: {other: 1, 'max': 8, more: [1]}", "p.py:P", 1, 8),
        ("predict: p.py:P\nconcurrency:\n  target: 3", "p.py:P", 1, 1),
        (
            textwrap.dedent(
                """\
                # Configuration for Cog
                build:
                  gpu: true
                  python_version: "3.11"
                  python_packages:
                    - "torch==2.1"   # predict: not.py:This
                  run:
                  - apt-get install x
                  - |
                    predict: nor.py:This
                image: r8.im/a/b
                predict: "predict.py:Predictor"
                list_at_the_margin:
                - a: b
                - predict: no.py:No
                flow: {
                predict: no.py:No,
                "x": "}"
                }
                text: >-
                  predict: no.py:No
                a key: 1
                x/y-z#1: https://h/p?a=b:c
                größe: 2
                3: predict
                <<: *other
                """
            ),
            "predict.py:Predictor",
            12,
            1,
        ),
    ],
)
def test_cog_yaml_is_read_as_far_as_it_is_needed(text: str, predict: str, line: int, concurrency: int) -> None:
    config = read_config(text)
    assert (config.predict, config.line, config.max_concurrency) == (predict, line, concurrency)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cog.yaml:1: cog.yaml does not say which predictor to load"),
        ("build:\n  predict: p.py:P\n", "cog.yaml:1: cog.yaml does not say which predictor to load"),
        ("predict:\n", "cog.yaml:1: predict is empty"),
        ("image: x\npredict: ~", "cog.yaml:2: predict is empty"),
        ("predict: [p.py]", "cog.yaml:1: predict is not a plain string"),
        ("predict: |\n  p.py:P", "cog.yaml:1: predict is not a plain string"),
        ("predict: p.py:P\n  and more", "cog.yaml:1: predict is not a plain string"),
        ('predict: "p.py\\x3aP"', "cog.yaml:1: predict is not a plain string"),
        ("predict: *anchor", "cog.yaml:1: predict is not a plain string"),
        ("predict: p.py:P\nrun: r.py:R", "cog.yaml:2: cog.yaml has both predict and run"),
        ("predict: p.py:P\npredict: q.py:Q", "cog.yaml:2: cog.yaml has predict twice"),
        ("image: x\nnonsense", "cog.yaml:2: cog.yaml is not understood: 'nonsense'"),
        ("  predict: p.py:P", "cog.yaml:1: cog.yaml is not understood"),
        ("{predict: p.py:P}", "cog.yaml:1: cog.yaml is not understood"),
        ("predict: p.py:P\nconcurrency:\n  max: many", "cog.yaml:2: concurrency.max is 'many'"),
    ],
)
def test_cog_yaml_that_is_not_understood_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        read_config(text)
    message = str(refused.value)
    assert message.startswith(said)
    assert message.partition("\n")[2], "and says what to write"


# -- predictors; those that are refused as they stand are in tests/corpus

IMPORTS = (
    "import datetime, enum, functools\n"
    "from typing import Any, AsyncIterator, Dict, Iterator, List, Optional, Union\n"
    "from cog import AsyncConcatenateIterator, BasePredictor, BaseRunner, ConcatenateIterator, Input, Path\n"
    "class Colors(enum.Enum):\n    RED = 'red'\n    BLUE = 'blue'\n"
    "class Levels(enum.Enum):\n    LOW = 1\n"
)
BEFORE = IMPORTS.count("\n")


def with_input(declared: str) -> str:
    """A predictor with one input, in the last line but one."""
    return with_method(f"def predict(\n        self,\n        {declared},\n    ) -> str: return ''")


def with_method(method: str) -> str:
    return f"class Predictor(BasePredictor):\n    {method}\n"


def with_setup(setup: str) -> str:
    return with_method(f"{setup}\n    def predict(self) -> str: return ''")


GOOD = """
    from __future__ import annotations

    import functools
    from typing import TYPE_CHECKING, List, Optional

    from cog import BasePredictor, ConcatenateIterator, Input

    if TYPE_CHECKING:
        from nowhere import Tensor

    def decorated(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)
        return wrapper

    class Predictor(BasePredictor):
        def setup(self, weights: str = None):
            self.weights = weights

        @decorated
        def predict(self, s: str, n: Optional[int], xs: List[str] = Input(default=["a"])) -> Tensor:
            return [s, n, xs, self.weights]

    def stream(count: int = 2) -> ConcatenateIterator[str]:
        for i in range(count):
            yield str(i)

    async def later(count: int = 2) -> int:
        return count
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_annotations_as_text_decorators_weights_and_functions_are_fine(version: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, GOOD)
    (model / "weights").mkdir()
    with BareRunner(model, PYTHONS[version]) as runner:
        assert [field["type"] for field in runner.load()["inputs"]] == ["str", "Optional[int]", "List[str]"]
        assert runner.done({"s": "t"})["output"] == ["t", None, ["a"], "weights"]
    with BareRunner(model, PYTHONS[version]) as runner:
        assert runner.load("predict.py:stream")["type"] == "ready"
        assert [message.get("value") for message in runner.predict({})[1:-1]] == ["0", "1"]
    with BareRunner(model, PYTHONS[version]) as runner:
        assert runner.load("predict.py:later")["type"] == "ready"
        assert runner.done({})["output"] == 2


def test_the_time_in_setup_is_told_apart_from_that_of_loading_also_when_it_fails(tmp_path: Path) -> None:
    setup = "    def setup(self): time.sleep(0.1); {end}\n    def predict(self) -> str: return 'x'\n"
    head = "import time\nfrom cog import BasePredictor\ntime.sleep(0.3)\nclass Predictor(BasePredictor):\n"
    with BareRunner(write_model(tmp_path / "works", head + setup.format(end="pass"))) as runner:
        ready = runner.load()
        assert 0.1 <= ready["in_setup"] <= ready["setup_time"] - 0.3
    model, began = write_model(tmp_path / "fails", head + setup.format(end="1/0")), time.monotonic()
    with BareRunner(model) as runner:
        assert 0.1 <= runner.load()["in_setup"] <= time.monotonic() - began - 0.3
    with BareRunner(write_model(tmp_path / "unread", "1/0")) as runner:
        assert runner.load()["in_setup"] is None


def failed(model: Path, predict: str | None = None, **environment: str) -> tuple[str, str, str]:
    """kind, error and logs of a predictor that cannot be loaded; the runner has exited with status 1."""
    with BareRunner(model, environment=environment) as runner:
        message = runner.load(predict)
        assert message.pop("type") == "setup_failed"
        assert runner.process.wait(10) == 1
        return message["kind"], message["error"], runner.logs()


def test_a_refusal_names_place_and_remedy(tmp_path: Path) -> None:
    model = write_model(tmp_path, IMPORTS + with_input("s: str = Input(ge=1)"))
    assert failed(model) == (
        "refused",
        f"predict.py:{BEFORE + 4}: incompatible input type for ge/le: s: str\n"
        "take ge and le out, or declare int or float",
        "",
    )


def test_a_module_that_cog_used_to_bring_is_named_with_its_requirement(tmp_path: Path) -> None:
    model = write_model(tmp_path, "import sys\nsys.modules['yaml'] = None\nimport yaml\n")
    kind, error, logs = failed(model)
    assert kind == "refused"
    assert error.startswith("predict.py:3: ")
    assert error.endswith("\nadd PyYAML to the model's requirements: Cog used to bring it")
    assert logs.startswith("Traceback (most recent call last):\n  File ")


@pytest.mark.parametrize(
    ("config", "predict", "said"),
    [
        (None, None, "cog.yaml not found in "),
        ("build: {}\n", None, "cog.yaml:1: cog.yaml does not say which predictor to load"),
        ("\n\npredict: other.py:Predictor\n", None, "cog.yaml:3: predictor not found: other.py:Predictor"),
        ("predict: predict.py:Wrong\n", None, "cog.yaml:1: predictor not found: predict.Wrong"),
        ("predict: predict.py\n", None, "cog.yaml:1: predictor not found: predict.Runner or Predictor"),
        (None, "predict.py:Wrong", "predict.py: predictor not found: predict.Wrong"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, config: str | None, predict: str | None, said: str) -> None:
    model = write_model(tmp_path, "x = 1\n", config)
    kind, error, _ = failed(model, predict)
    assert (kind, error[: len(said)]) == ("refused", said)


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('broken')\n",
        IMPORTS
        + with_method("def __init__(self): raise ValueError('broken')\n    def predict(self) -> str: return ''"),
        IMPORTS + with_setup("def setup(self): raise ValueError('broken')"),
        IMPORTS
        + with_method(
            "async def setup(self): raise ValueError('broken')\n    async def predict(self) -> str: return ''"
        ),
    ],
)
def test_what_the_models_own_code_raises_is_told_with_its_traceback(tmp_path: Path, source: str) -> None:
    kind, error, logs = failed(write_model(tmp_path, source))
    assert (kind, error) == ("raised", "broken")
    title, first, *_, last = logs.splitlines()
    assert (title, last) == ("Traceback (most recent call last):", "ValueError: broken")
    assert "predict.py" in first


def test_a_model_that_exits_in_setup_ends_with_its_code(tmp_path: Path) -> None:
    with BareRunner(write_model(tmp_path, "import sys\nsys.exit(5)\n")) as runner:
        with pytest.raises(EOFError):
            runner.load()
        assert runner.process.wait(10) == 5


@pytest.mark.parametrize("weights", ["https://h/w.tar", "local/w.bin"])
def test_weights_are_named_by_the_environment(tmp_path: Path, weights: str) -> None:
    with BareRunner(write_model(tmp_path, GOOD), environment={"COG_WEIGHTS": weights}) as runner:
        runner.load()
        assert runner.done({"s": ""})["output"][3] == weights


FETCHED = """
    from typing import Optional

    from cog import BasePredictor, Path

    class Predictor(BasePredictor):
        def setup(self, weights: Optional[Path] = None):
            self.weights = weights

        def predict(self) -> list:
            return [type(self.weights).__name__, self.weights.name, self.weights.read_text()]
"""


def test_weights_with_a_url_are_fetched_before_setup(tmp_path: Path, web: Web) -> None:
    web.on("/w.bin", reply(200, b"weights"))
    model = write_model(tmp_path, FETCHED)
    url = f"{web.url}/w.bin?signature=hunter2"
    environment = {"COG_WEIGHTS": url, "TMPDIR": str(tmp_path)}
    with BareRunner(model, environment=environment) as runner:
        assert runner.load()["type"] == "ready"
        assert runner.done({})["output"] == ["Path", "w.bin", "weights"]
    environment["COG_WEIGHTS"] = url.replace("w.bin", "gone.bin")
    kind, error, logs = failed(model, **environment)
    assert (kind, error) == (
        "raised",
        "the weights that COG_WEIGHTS names cannot be fetched: HTTP Error 404: Not Found",
    )
    assert "hunter2" not in logs


def test_files_in_the_models_folder_do_not_shadow_what_the_runner_needs(tmp_path: Path) -> None:
    """Named like modules of the standard library and like cog; the folder is on PYTHONPATH too, as in many images."""
    for name in ("json", "queue", "selectors", "ssl", "cog", "typing", "inspect", "traceback", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    source = """
        import asyncio_free_helper
        from cog import BasePredictor

        class Predictor(BasePredictor):
            async def predict(self, s: str) -> str:
                return s + asyncio_free_helper.NAME
    """
    (tmp_path / "asyncio_free_helper.py").write_text("NAME = 'helper'\n")
    model = write_model(tmp_path, source)
    with BareRunner(model, environment={"PYTHONPATH": str(model)}) as runner:
        assert runner.load()["type"] == "ready"
        assert runner.done({"s": "x"})["output"] == "xhelper"


def test_an_installed_cog_is_shadowed(tmp_path: Path) -> None:
    (tmp_path / "site" / "cog").mkdir(parents=True)
    (tmp_path / "site" / "cog" / "__init__.py").write_text("raise SystemExit('the installed one')\n")
    source = "from cog import BasePredictor\nclass Predictor(BasePredictor):\n    def predict(self) -> str: return ''\n"
    with BareRunner(
        write_model(tmp_path / "model", source), environment={"PYTHONPATH": str(tmp_path / "site")}
    ) as runner:
        assert runner.load()["type"] == "ready"


def test_what_the_model_defines_can_be_pickled_for_its_children(tmp_path: Path) -> None:
    source = """
        import multiprocessing
        from typing import Any

        from cog import BasePredictor

        def square(x):
            return x * x

        class Predictor(BasePredictor):
            def predict(self) -> Any:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    return pool.map(square, [1, 2, 3])
    """
    with BareRunner(write_model(tmp_path, source)) as runner:
        runner.load()
        assert runner.done({})["output"] == [1, 4, 9]
