# set.
# {"x": [2, 1, 2]} -> [1, 2]
# {"x": [[1]]} -> refused: invalid input value: x: the elements of a set cannot be lists or objects

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: set) -> Any:
        return sorted(x)
