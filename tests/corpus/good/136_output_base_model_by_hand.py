# A BaseModel that is decorated by hand.
# {} -> {"a": 1}

from dataclasses import dataclass
from typing import Any

from cog import BaseModel, BasePredictor


@dataclass
class Output(BaseModel, auto_dataclass=False):
    a: int


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Output:
        return Output(a=1)
