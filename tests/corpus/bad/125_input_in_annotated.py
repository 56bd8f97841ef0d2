# Input() within Annotated, where nobody would look for it.
# refused: invalid input field n: Input() within Annotated

from typing import Annotated

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        n: Annotated[int, Input(ge=1)],  # <- here
    ) -> str:
        return ""
