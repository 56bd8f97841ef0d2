# An Enum of int.
# {"x": "2"} -> 2
# {"x": 3} -> refused: invalid input value: x=3 does not match choices [1, 2]

import enum
from typing import Any

from cog import BasePredictor


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Predictor(BasePredictor):
    def predict(self, x: Level) -> Any:
        return x
