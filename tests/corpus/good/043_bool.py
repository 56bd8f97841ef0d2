# bool.
# {"x": true} -> true
# {"x": 0} -> false
# {"x": "on"} -> true
# {"x": 2} -> refused: invalid input value: x=2 is not a valid bool

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: bool) -> Any:
        return x
