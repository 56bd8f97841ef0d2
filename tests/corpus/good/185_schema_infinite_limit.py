# A limit without an end is none in the schema.
# {"n": 3} -> 3.0
# {"n": 1} -> refused: invalid input value: n=1 fails constraint >= 2.0
# schema Input.properties.n: {"type": "number", "minimum": 2, "title": "N", "x-order": 0}

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, n: float = Input(ge=2, le=float("inf"))) -> float:
        return n
