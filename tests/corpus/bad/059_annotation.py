# No annotation.
# refused: missing type annotation for input: s

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        s,  # <- here
    ) -> str:
        return ""
