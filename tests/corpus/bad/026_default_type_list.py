# A default list of another type.
# refused: default=['x'] is not of the type of input: xs: List[int]

from typing import List

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[int] = ["x"],  # <- here
    ) -> str:
        return ""
