# A class with predict().
# {"s": "a"} -> "a!"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, s: str) -> str:
        return s + "!"
