# Dict with keys that are numbers.
# {"x": {"1": "a"}} -> "[(1, 'a')]"

from typing import Dict
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Dict[int, str]) -> str:
        return str(list(x.items()))
