# A class of the model's own, through a Coder, in and out.
# {"p": {"x": 1, "y": 2}} -> {"x": 2, "y": 1}
# {"p": {"x": 1}} -> refused: invalid input value: p: 'y'

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
    def predict(self, p: Point) -> Point:
        return Point(p.y, p.x)
