# test_inputs that are made.
# test inputs: {"n": 4}

from cog import BasePredictor


class Predictor(BasePredictor):
    def test_inputs():
        return {"n": 4}

    def predict(self, n: int) -> int:
        return n
