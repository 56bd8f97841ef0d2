# A list of lists.
# refused: invalid input field xs: List cannot have nested type list

from typing import List

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[List[int]],  # <- here
    ) -> str:
        return ""
