# NaN is beyond every limit.
# {"x": NaN} -> refused: invalid input value: x=nan fails constraint <= 1.0

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: float = Input(le=1)) -> Any:
        return x
