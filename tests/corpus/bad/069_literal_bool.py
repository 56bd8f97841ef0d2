# A Literal of bool.
# refused: invalid input field x: the values of Literal[True] are not all str or all int

from typing import Literal

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        x: Literal[True],  # <- here
    ) -> str:
        return ""
