# A NewType is what it stands for.
# {"x": "7"} -> 7

from typing import NewType
from typing import Any

from cog import BasePredictor


Seed = NewType("Seed", int)


class Predictor(BasePredictor):
    def predict(self, x: Seed) -> Any:
        return x
