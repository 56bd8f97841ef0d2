# Training is not supported, and that is said; predictions run.
# cog.yaml: predict: predict.py:Predictor
# cog.yaml: train: predict.py:train
# log: cog.yaml:2: training is not supported
# {} -> 1

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> int:
        return x
