# A list of what a Coder knows.
# {"p": [{"x": 1, "y": 2}]} -> [{"x": 1, "y": 2}]

from typing import List
from typing import Any

from cog import BasePredictor, Coder


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


class PointCoder(Coder):
    @staticmethod
    def factory(tpe):
        return PointCoder() if tpe is Point else None

    def encode(self, value):
        return {"x": value.x, "y": value.y}

    def decode(self, value):
        return Point(value["x"], value["y"])


Coder.register(PointCoder)


class Predictor(BasePredictor):
    def predict(self, p: List[Point]) -> Any:
        return p
