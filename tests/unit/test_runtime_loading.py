"""Loading a predictor: cog.yaml, what is found, and what is refused with file, line and what to write instead."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import pytest

from cog_celery.runtime.cog._runner.config import read_config
from cog_celery.runtime.cog._runner.refusal import Refused
from tests.support.bare_runner import PYTHONS, RUNTIME, BareRunner, write_model

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


# -- predictors that are refused

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


INPUTS = [
    ("b: bool = Input(choices=[True, False])", "incompatible input type for choices: b: bool"),
    ("f: float = Input(choices=[1.0, 2.0])", "incompatible input type for choices: f: float"),
    ("i: int = Input(choices=[1, 2], ge=1)", "choices and ge/le are mutually exclusive: i: int"),
    (
        "s: str = Input(choices=['a', 'b'], max_length=1)",
        "choices and min_length/max_length are mutually exclusive: s: str",
    ),
    ("s: str = Input(choices=['a'])", "choices=['a'] must have >= 2 elements: s: str"),
    ("s: str = Input(choices=['a', 1])", "not all choices have the same type as input: s: str"),
    ("i: int = Input(default=0, ge=10)", "default=0 conflicts with ge=10 for input: i: int"),
    ("i: int = Input(default=20, le=10)", "default=20 conflicts with le=10 for input: i: int"),
    ("s: str = Input(default='a', min_length=2)", "default='a' conflicts with min_length=2 for input: s: str"),
    ("s: str = Input(default='abc', max_length=2)", "default='abc' conflicts with max_length=2 for input: s: str"),
    ("i: List[int] = Input(default=[0, 100], ge=10)", "default=[0, 100] conflicts with ge=10 for input: i: List[int]"),
    ("s: str = Input(default='foo', regex='[0-9]+')", "default='foo' not a regex match for input: s: str"),
    ("s: str = Input(default=None)", "error-prone usage of default=None"),
    ("s: str = None", "error-prone usage of default=None"),
    ("p: Path = Input(default=None)", "error-prone usage of default=None"),
    ("i: int = 'x'", "default='x' is not of the type of input: i: int"),
    ("c: Colors", "enum Colors is used as str but does not extend it"),
    ("c: Levels", "enum Levels is used as int but does not extend it"),
    ("s: str = Input(ge=1)", "incompatible input type for ge/le: s: str"),
    ("s: List[str] = Input(le=1)", "incompatible input type for ge/le: s: List[str]"),
    ("s: Optional[str] = Input(le=1)", "incompatible input type for ge/le: s: Optional[str]"),
    ("i: int = Input(min_length=1)", "incompatible input type for min_length/max_length: i: int"),
    ("i: int = Input(regex='1')", "incompatible input type for regex: i: int"),
    ("i: int = Input(ge='1')", "ge='1' is not float: i: int"),
    ("xs: List[List[int]]", "invalid input field xs: List cannot have nested type list"),
    ("xs: List[Dict[str, int]]", "invalid input field xs: List cannot have nested type dict"),
    ("opt: Optional[List[List[int]]]", "invalid input field opt: Optional cannot have nested type list"),
    ("u: Union[int, str]", "invalid input field u: unsupported Cog type Union"),
    ("s", "missing type annotation for input: s"),
    ("dt: datetime.datetime", "invalid input field dt: unsupported Cog type datetime"),
    ("x: 'Nowhere'", "invalid input field x: its type 'Nowhere' cannot be evaluated"),
]
METHODS = [
    ("def predict(self) -> Iterator: yield ''", "iterator type must have a type argument"),
    ("def predict(self) -> AsyncIterator: yield ''", "iterator type must have a type argument"),
    ("def predict(self) -> ConcatenateIterator[int]: yield 1", "ConcatenateIterator must have str element"),
    (
        "async def predict(self) -> AsyncConcatenateIterator[int]: yield 1",
        "AsyncConcatenateIterator must have str element",
    ),
    ("def predict(self) -> Optional[str]: return ''", "output must not be Optional"),
    ("def predict(self) -> None: pass", "predict() must not return None"),
    ("def predict(self, **inputs) -> str: return ''", "predict() must not have **kwargs"),
    ("def predict(self, *inputs) -> str: return ''", "predict() must not have *args"),
    ("def predict(this, s: str) -> str: return ''", "predict() must have 'self' first argument"),
    ("def predict() -> str: return ''", "predict() must have 'self' first argument"),
    ("predict = 3", "predict is not a function"),
    ("predict = staticmethod(lambda: 1)", "predict is not a function"),
    ("def run(self, **inputs) -> str: return ''", "run() must not have **kwargs"),
    ("def other(self) -> str: return ''", "predict method not found"),
    (
        "def predict(self) -> str: return ''\n    def run(self) -> str: return ''",
        "both predict() and run() are defined",
    ),
]
SETUPS = [
    ("setup = 3", "setup is not a function"),
    ("def setup(self, x, y=1): pass", "unexpected setup() arguments: x, y"),
    ("def setup(self, **options): pass", "setup() must not have **kwargs"),
    ("def setup(self, *options): pass", "setup() must not have *args"),
    ("def setup(self) -> str: return ''", "setup() must return None"),
    ("def setup(this): pass", "setup() must have 'self' first argument"),
]
WHOLE = [
    ("class Other: pass", "predictor not found: predict.Predictor"),
    (
        "class Predictor:\n    def predict(self) -> str: return ''",
        "predictor predict.Predictor does not inherit cog.BasePredictor",
    ),
    ("Predictor = 3", "invalid predictor predict.Predictor"),
    ("def Predictor(*args) -> str: return ''", "predict() must not have *args"),
    ("import structlog", "import of structlog halted; None in sys.modules"),
]
CASES = [
    *((with_input(source), text, BEFORE + 4) for source, text in INPUTS),
    *((with_method(source), text, None) for source, text in METHODS),
    *((with_setup(source), text, None) for source, text in SETUPS),
    *((source, text, None) for source, text in WHOLE),
]

# Loads all of them in one process, and says of each what was refused.
LOADER = """
import json, os, sys, tempfile
runtime, scratch = sys.argv[1:]
sys.path.insert(0, runtime)
from cog._runner.load import load_predictor
from cog._runner.refusal import Refused
sys.modules["structlog"] = None
path = sys.path[:]
for source in json.load(sys.stdin):
    folder = tempfile.mkdtemp(dir=scratch)
    with open(os.path.join(folder, "predict.py"), "w") as file:
        file.write(source)
    sys.path[:] = path
    sys.modules.pop("predict", None)
    try:
        load_predictor(folder, "predict.py:Predictor")
        print("null")
    except Refused as refused:
        print(json.dumps([refused.text, refused.hint, refused.file, refused.line]))
"""


@pytest.mark.parametrize("version", PYTHONS)
def test_a_predictor_that_cannot_work_is_refused(version: str, tmp_path: Path) -> None:
    sources = json.dumps([IMPORTS + source for source, _, _ in CASES])
    command = [PYTHONS[version], "-c", LOADER, str(RUNTIME), str(tmp_path)]
    ran = subprocess.run(command, input=sources, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == len(CASES)
    for (source, text, line), answer in zip(CASES, answers, strict=True):
        assert answer is not None, f"not refused: {source}"
        said, hint, file, at = answer
        assert said == text or (text.endswith("cannot be evaluated") and said.startswith(text))
        assert hint
        if "setup = 3" not in source and "predict = " not in source:
            assert file == "predict.py"
        if line is not None:
            assert at == line, source


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
