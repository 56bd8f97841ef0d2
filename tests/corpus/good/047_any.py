# Any.
# {"x": {"a": [1, null]}} -> {"a": [1, null]}
# {"x": null} -> null

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Any) -> Any:
        return x
