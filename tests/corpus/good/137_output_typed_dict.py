# A TypedDict as output.
# {} -> {"a": 1}

from typing import TypedDict
from typing import Any

from cog import BasePredictor


class Answer(TypedDict):
    a: int


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Answer:
        return {"a": 1}
