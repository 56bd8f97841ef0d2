# dict.
# {"x": {"a": 1}} -> {"a": 1}
# {"x": []} -> refused: invalid input value: x=[] is not a valid dict

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: dict) -> Any:
        return x
