# Keys are text in JSON.
# {} -> {"1": 1, "true": 2, "null": 3, "1.5": 4}

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return {1: 1, "true": 2, None: 3, 1.5: 4}
