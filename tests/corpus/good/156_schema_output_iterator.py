# The schema of an output of type Iterator[str].
# schema Output: {"title": "Output", "type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}

from typing import Iterator
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Iterator[str]:
        yield ""
