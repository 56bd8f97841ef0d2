# Optional: not required, null allowed, None by default.
# {} -> null
# {"x": null} -> null
# {"x": "4"} -> 4

from typing import Optional
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: Optional[int]) -> Any:
        return x
