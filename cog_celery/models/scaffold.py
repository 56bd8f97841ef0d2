"""A small model that works, for `cog-celery init`: its files, and writing them where nothing is.

It must not know how a model is run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from cog_celery.errors import UsageError

CONFIG: Final = """\
build:
  python_version: "{version}"
  # What `cog-celery install` puts into an environment of this model's own:
  python_packages: []
predict: "predict.py:Predictor"
"""

PREDICTOR: Final = '''\
from cog import BasePredictor, Input


class Predictor(BasePredictor):
    test_inputs = {"text": "world"}

    def setup(self) -> None:
        """Load the model: once, before the first prediction."""
        self.greeting = "hello"

    def predict(
        self,
        text: str = Input(description="Who is greeted"),
        times: int = Input(description="How often", default=1, ge=1, le=10),
    ) -> str:
        """One prediction. What is printed goes to its logs."""
        print(f"greeting {text!r}")
        return " ".join([f"{self.greeting} {text}"] * times)
'''

README: Final = """\
# {name}

Greets. `cog-celery predict .` runs it with its `test_inputs`, `cog-celery schema .` shows its inputs,
`cog-celery run .` serves it.
"""


def write_model(folder: Path) -> list[Path]:
    """The files that were written. Raises UsageError, before it writes any, when one of them is there."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    texts = {
        "cog.yaml": CONFIG.format(version=version),
        "predict.py": PREDICTOR,
        "README.md": README.format(name=Path(os.path.abspath(folder)).name or "model"),
    }
    there = [name for name in texts if os.path.lexists(folder / name)]
    if there:
        raise UsageError(f"{folder} has {' and '.join(there)} already, and nothing is overwritten: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{folder}: no model can be written there: {reason}") from None
    return [folder / name for name in texts]
