# pathlib.Path is a file too.
# {"x": "https://h/a.txt"} -> "a.txt"

import pathlib
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: pathlib.Path) -> Any:
        return x.read_text()
