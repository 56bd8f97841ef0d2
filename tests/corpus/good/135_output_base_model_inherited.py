# A BaseModel of a BaseModel.
# {} -> {"a": 1, "b": 2}

from typing import Any

from cog import BaseModel, BasePredictor


class First(BaseModel):
    a: int


class Second(First):
    b: int


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Second:
        return Second(a=1, b=2)
