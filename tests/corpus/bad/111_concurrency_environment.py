# COG_MAX_CONCURRENCY that is no number.
# refused: COG_MAX_CONCURRENCY is 'many'
# environment: COG_MAX_CONCURRENCY=many

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> int:
        return x
