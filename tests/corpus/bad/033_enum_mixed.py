# An Enum of several types.
# refused: invalid input field c: the values of Mixed are not all str or all int

import enum

from cog import BasePredictor


class Mixed(enum.Enum):
    A = "a"
    B = 1


class Predictor(BasePredictor):
    def predict(
        self,
        c: Mixed,  # <- here
    ) -> str:
        return ""
