# A set of tuples.
# refused: invalid input field d: Set cannot have nested type tuple

from typing import Set, Tuple

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        d: Set[Tuple[int, int]],  # <- here
    ) -> str:
        return ""
