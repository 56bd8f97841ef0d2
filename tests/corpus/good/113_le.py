# le.
# {"x": 1.5} -> 1.5
# {"x": 1.6} -> refused: invalid input value: x=1.6 fails constraint <= 1.5

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: float = Input(le=1.5)) -> Any:
        return x
