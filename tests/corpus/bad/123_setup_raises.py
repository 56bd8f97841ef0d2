# setup() that raises.
# raised: broken

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self):
        raise ValueError("broken")

    def predict(self) -> str:
        return ""
