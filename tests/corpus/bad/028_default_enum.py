# A default of an Enum that does not extend str.
# refused: enum Colors is used as str but does not extend it

import enum

from cog import BasePredictor


class Colors(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Colors.RED,  # <- here
    ) -> str:
        return ""
