# Optional[List[T]].
# {} -> null
# {"x": ["1"]} -> [1.0]

from typing import List, Optional
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Optional[List[float]]) -> Any:
        return x
