# test_inputs on the class.
# test inputs: {"n": 3}

from cog import BasePredictor


class Predictor(BasePredictor):
    test_inputs = {"n": 3}

    def predict(self, n: int) -> int:
        return n
