# list[T].
# {"x": ["a"]} -> ["a"]

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: list[str]) -> Any:
        return x
