# The schema of an output of type List[Path].
# schema Output: {"title": "Output", "type": "array", "items": {"type": "string", "format": "uri"}}

from typing import List
from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> List[Path]:
        return []
