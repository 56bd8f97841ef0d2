# choices of int.
# {"x": "2"} -> 2
# {"x": 3} -> refused: invalid input value: x=3 does not match choices [1, 2]

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: int = Input(choices=[1, 2])) -> Any:
        return x
