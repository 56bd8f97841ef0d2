# A list of what is Optional.
# refused: invalid input field xs: List cannot have nested type Optional

from typing import List, Optional

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[Optional[int]],  # <- here
    ) -> str:
        return ""
