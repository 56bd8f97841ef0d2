# test_inputs on the module.
# test inputs: {"n": 5}

from cog import BasePredictor


def test_inputs():
    return {"n": 5}


class Predictor(BasePredictor):
    def predict(self, n: int) -> int:
        return n
