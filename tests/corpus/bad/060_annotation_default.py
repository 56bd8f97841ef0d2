# No annotation, but a default.
# refused: missing type annotation for input: s

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        s="a",  # <- here
    ) -> str:
        return ""
