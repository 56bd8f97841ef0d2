# os.PathLike is a file too.
# {"x": "https://h/a.txt"} -> "a.txt"

import os
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: os.PathLike) -> Any:
        return open(x).read()
