# An exception without a text is shown as Python does.
# {} -> failed: ValueError()

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        raise ValueError
