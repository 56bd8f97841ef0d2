# A default is converted to its type.
# {} -> "5.0"

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: float = 5) -> str:
        return repr(x)
