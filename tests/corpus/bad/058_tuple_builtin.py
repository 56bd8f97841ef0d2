# tuple[…].
# refused: invalid input field t: unsupported Cog type tuple

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        t: tuple[int, int],  # <- here
    ) -> str:
        return ""
