# A list of dataclasses.
# {"x": [{"w": 1}, {"w": "2"}]} -> [1, 2]
# {"x": [{}]} -> refused: invalid input value: x: w: field required

from dataclasses import dataclass
from typing import List
from typing import Any

from cog import BasePredictor


@dataclass
class Box:
    w: int


class Predictor(BasePredictor):
    def predict(self, x: List[Box]) -> Any:
        return [b.w for b in x]
