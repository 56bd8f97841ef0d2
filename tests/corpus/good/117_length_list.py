# Lengths on a list are for every element.
# {"x": ["ab", "c"]} -> ["ab", "c"]
# {"x": ["abc"]} -> refused: invalid input value: x=['abc'] fails constraint len() <= 2

from typing import List
from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: List[str] = Input(max_length=2)) -> Any:
        return x
