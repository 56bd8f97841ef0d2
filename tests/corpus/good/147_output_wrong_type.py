# What is returned is sent, whatever was declared.
# {} -> "text"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> int:
        return "text"
