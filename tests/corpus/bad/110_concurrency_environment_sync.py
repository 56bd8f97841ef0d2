# COG_MAX_CONCURRENCY of a predict() that is not async.
# refused: COG_MAX_CONCURRENCY is 4, but predict() is not async
# environment: COG_MAX_CONCURRENCY=4

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> int:
        return x
