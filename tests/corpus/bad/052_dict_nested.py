# A dict of lists.
# refused: invalid input field d: Dict cannot have nested type list

from typing import Dict, List

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        d: Dict[str, List[int]],  # <- here
    ) -> str:
        return ""
