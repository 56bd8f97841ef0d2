# predict() and run().
# refused: both predict() and run() are defined

from cog import BasePredictor


class Predictor(BasePredictor):  # <- here
    def predict(self) -> str:
        return ""

    def run(self) -> str:
        return ""
