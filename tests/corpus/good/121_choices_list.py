# choices on a list are for every element.
# {"x": ["a", "a"]} -> ["a", "a"]
# {"x": ["a", "c"]} -> refused: invalid input value: x=['a', 'c'] does not match choices ['a', 'b']

from typing import List
from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: List[str] = Input(choices=["a", "b"])) -> Any:
        return x
