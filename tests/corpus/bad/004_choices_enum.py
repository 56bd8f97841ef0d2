# choices of an Enum.
# refused: incompatible input type for choices: c: Colors

import enum

from cog import BasePredictor, Input


class Colors(str, enum.Enum):
    RED = "red"
    BLUE = "blue"


class Predictor(BasePredictor):
    def predict(
        self,
        c: Colors = Input(choices=["red", "blue"]),  # <- here
    ) -> str:
        return ""
