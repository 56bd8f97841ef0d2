# A default list with an element below ge.
# refused: default=[0, 100] conflicts with ge=10 for input: i: List[int]

from typing import List

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: List[int] = Input(default=[0, 100], ge=10),  # <- here
    ) -> str:
        return ""
