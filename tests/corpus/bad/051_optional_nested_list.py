# An Optional list of lists.
# refused: invalid input field opt: Optional cannot have nested type list

from typing import List, Optional

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        opt: Optional[List[List[int]]],  # <- here
    ) -> str:
        return ""
