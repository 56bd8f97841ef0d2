# The schema of an output of type ConcatenateIterator[str].
# schema Output: {"title": "Output", "type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"}

from typing import Any

from cog import BasePredictor, ConcatenateIterator


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> ConcatenateIterator[str]:
        yield ""
