# default_factory is called for every prediction.
# {} -> 1
# {} -> 2
# {"x": 9} -> 9

from typing import Any

from cog import BasePredictor, Input


made = []


def count():
    made.append(1)
    return len(made)


class Predictor(BasePredictor):
    def predict(self, x: int = Input(default_factory=count)) -> Any:
        return x
