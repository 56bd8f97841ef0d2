# A default list with an element that is too long.
# refused: default=['a', 'abc'] conflicts with max_length=2 for input: s: List[str]

from typing import List

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: List[str] = Input(default=["a", "abc"], max_length=2),  # <- here
    ) -> str:
        return ""
