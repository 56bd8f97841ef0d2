# concurrency.max of a predict() that is not async.
# refused: concurrency.max is 4, but predict() is not async
# cog.yaml: predict: predict.py:Predictor
# cog.yaml: concurrency:
# cog.yaml:   max: 4

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> int:
        return x
