# An Enum that does not extend int.
# refused: enum Levels is used as int but does not extend it

import enum

from cog import BasePredictor


class Levels(enum.Enum):
    LOW = 1
    HIGH = 2


class Predictor(BasePredictor):
    def predict(
        self,
        c: Levels,  # <- here
    ) -> str:
        return ""
