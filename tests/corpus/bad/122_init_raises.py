# A class that cannot be made.
# raised: broken

from cog import BasePredictor


class Predictor(BasePredictor):
    def __init__(self):
        raise ValueError("broken")

    def predict(self) -> str:
        return ""
