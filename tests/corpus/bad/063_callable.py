# A Callable.
# refused: invalid input field c: unsupported Cog type Callable

from typing import Callable

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        c: Callable[[], int],  # <- here
    ) -> str:
        return ""
