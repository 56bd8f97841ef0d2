# bytes.
# refused: invalid input field b: unsupported Cog type bytes

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        b: bytes,  # <- here
    ) -> str:
        return ""
