# A Secret by default.
# {} -> "abc"

from typing import Any

from cog import BasePredictor, Input, Secret


class Predictor(BasePredictor):
    def predict(self, x: Secret = Input(default="abc")) -> Any:
        return x.get_secret_value()
