# A file that is not there.
# refused: predictor not found: other.py:Predictor
# cog.yaml: predict: other.py:Predictor

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> int:
        return x
