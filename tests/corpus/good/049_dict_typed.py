# Dict with types.
# {"x": {"a": "1"}} -> {"a": 1}
# {"x": {"a": "b"}} -> refused: invalid input value: x: a: is not a valid int

from typing import Dict
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Dict[str, int]) -> Any:
        return x
