"""A predictor whose setup ends its process."""

import os

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        os._exit(7)

    def predict(self) -> str:
        return "never"
