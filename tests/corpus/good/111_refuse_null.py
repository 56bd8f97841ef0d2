# null for what is not Optional.
# {"x": null} -> refused: invalid input value: x=None must not be null

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        return x
