# default=None of a List.
# refused: error-prone usage of default=None

from typing import List

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        xs: List[int] = Input(default=None),  # <- here
    ) -> str:
        return ""
