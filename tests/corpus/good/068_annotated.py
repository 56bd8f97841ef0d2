# Annotated is the type within.
# {"x": "7"} -> 7

from typing import Annotated
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Annotated[int, "seconds"]) -> Any:
        return x
