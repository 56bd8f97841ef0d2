# le of an Optional[str].
# refused: incompatible input type for ge/le: s: Optional[str]

from typing import Optional

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: Optional[str] = Input(le=1),  # <- here
    ) -> str:
        return ""
