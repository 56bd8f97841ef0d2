# A tuple.
# refused: invalid input field t: unsupported Cog type tuple

from typing import Tuple

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        t: Tuple[int, int],  # <- here
    ) -> str:
        return ""
