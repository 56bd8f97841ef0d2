# A mutable default is copied for every call.
# {} -> [1, 2]
# {} -> [1, 2]

from typing import List
from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: List[int] = Input(default=[1])) -> Any:
        x.append(2)
        return x
