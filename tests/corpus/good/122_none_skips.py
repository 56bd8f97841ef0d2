# null skips all limits.
# {"x": null} -> null
# {"x": 1} -> refused: invalid input value: x=1 fails constraint >= 3.0

from typing import Optional
from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: Optional[int] = Input(default=5, ge=3)) -> Any:
        return x
