# le of a List[str].
# refused: incompatible input type for ge/le: s: List[str]

from typing import List

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: List[str] = Input(le=1),  # <- here
    ) -> str:
        return ""
