# setup() whose first argument is not self.
# refused: setup() must have 'self' first argument

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(this):  # <- here
        pass

    def predict(self) -> str:
        return ""
