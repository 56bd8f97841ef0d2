# A union with None.
# refused: invalid input field u: unsupported Cog type Union

from typing import Optional, Union

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        u: Optional[Union[int, str]],  # <- here
    ) -> str:
        return ""
