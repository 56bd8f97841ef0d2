# A union.
# refused: invalid input field u: unsupported Cog type Union

from typing import Union

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        u: Union[int, str],  # <- here
    ) -> str:
        return ""
