# min_length.
# {"x": "ab"} -> "ab"
# {"x": "a"} -> refused: invalid input value: x='a' fails constraint len() >= 2

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: str = Input(min_length=2)) -> Any:
        return x
