# A class without predict().
# refused: predict method not found

from cog import BasePredictor


class Predictor(BasePredictor):  # <- here
    def other(self) -> str:
        return ""
