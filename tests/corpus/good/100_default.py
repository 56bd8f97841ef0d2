# x: int = 3 is Input(default=3).
# {} -> 3
# {"x": 4} -> 4

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 3) -> Any:
        return x
