# What is falsy is an output.
# {} -> [0, "", [], false]

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return [0, "", [], False]
