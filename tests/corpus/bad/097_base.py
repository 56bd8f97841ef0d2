# A class that extends nothing.
# refused: predictor predict.Predictor does not inherit cog.BasePredictor


class Predictor:  # <- here
    def predict(self) -> str:
        return ""
