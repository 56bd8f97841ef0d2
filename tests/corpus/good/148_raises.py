# An exception's text is the error.
# {} -> failed: it broke

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        raise ValueError("it broke")
