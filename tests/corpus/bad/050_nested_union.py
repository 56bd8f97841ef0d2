# A list of unions.
# refused: invalid input field xs: List cannot have nested type Union

from typing import List, Union

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[Union[int, str]],  # <- here
    ) -> str:
        return ""
