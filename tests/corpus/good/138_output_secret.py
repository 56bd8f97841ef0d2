# A Secret comes out masked.
# {} -> ["**********"]

from typing import Any

from cog import BasePredictor, Secret


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return [Secret("abc")]
