# ge on a list is for every element; the whole list is shown.
# {"xs": [1, 2]} -> [1, 2]
# {"xs": [-1]} -> refused: invalid input value: xs=[-1] fails constraint >= 0.0

from typing import List
from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, xs: List[int] = Input(ge=0)) -> Any:
        return xs
