# Arguments by name only.
# {"s": "x"} -> "x1"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, *, s: str, n: int = 1) -> str:
        return s + str(n)
