# Weights without a default are None too when there are none.
# {} -> null

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self, weights):
        self.weights = weights

    def predict(self) -> Any:
        return self.weights
