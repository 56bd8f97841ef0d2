# An Optional Literal.
# {} -> null
# {"x": "a"} -> "a"

from typing import Literal, Optional
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Optional[Literal["a", "b"]]) -> Any:
        return x
