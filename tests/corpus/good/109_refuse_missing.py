# missing required input field.
# {} -> refused: missing required input field: x

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int) -> Any:
        return x
