# ge that is no number.
# refused: ge='1' is not float: i: int

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        i: int = Input(ge="1"),  # <- here
    ) -> str:
        return ""
