# Without a name Predictor is found.
# cog.yaml: predict: predict.py
# {} -> "predictor"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: str = "predictor") -> str:
        return x
