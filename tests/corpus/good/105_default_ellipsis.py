# ... is no default.
# {} -> refused: missing required input field: x

from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, x: int = Input(..., ge=1)) -> Any:
        return x
