# Arguments that cannot be given by name.
# refused: predict() must not have positional-only arguments

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, s: str, /) -> str:  # <- here
        return s
