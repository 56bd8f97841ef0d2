# A Literal of several types.
# refused: invalid input field x: the values of Literal['a', 1] are not all str or all int

from typing import Literal

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        x: Literal["a", 1],  # <- here
    ) -> str:
        return ""
