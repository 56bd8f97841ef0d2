# A list of dicts with types.
# refused: invalid input field xs: List cannot have nested type dict

from typing import Dict, List

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[Dict[str, int]],  # <- here
    ) -> str:
        return ""
