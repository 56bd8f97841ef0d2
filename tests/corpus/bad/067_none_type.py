# None.
# refused: invalid input field n: unsupported Cog type None

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        n: None,  # <- here
    ) -> str:
        return ""
