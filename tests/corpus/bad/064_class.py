# A class that no coder knows.
# refused: invalid input field t: unsupported Cog type Thing

from cog import BasePredictor


class Thing:
    pass


class Predictor(BasePredictor):
    def predict(
        self,
        t: Thing,  # <- here
    ) -> str:
        return ""
