# An output so deep that nobody could read it.
# {} -> failed: The output is more than 500 levels deep.

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, levels: int = 600) -> Any:
        value: Any = [0] * 1000
        for _ in range(levels):
            value = {"a": value}
        return value
