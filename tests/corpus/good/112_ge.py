# ge.
# {"x": 10} -> 10
# {"x": 9} -> refused: invalid input value: x=9 fails constraint >= 10.0

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: int = Input(ge=10)) -> Any:
        return x
