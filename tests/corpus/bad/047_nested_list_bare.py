# A list of bare lists.
# refused: invalid input field xs: List cannot have nested type list

from typing import List

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[list],  # <- here
    ) -> str:
        return ""
