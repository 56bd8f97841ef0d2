# max_length.
# {"x": "ab"} -> "ab"
# {"x": "abc"} -> refused: invalid input value: x='abc' fails constraint len() <= 2

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: str = Input(max_length=2)) -> Any:
        return x
