# An open file.
# {} -> [null, null] files {"file": "raw", "named.txt": "text"}

import io
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        named = io.StringIO("text")
        named.name = "named.txt"
        return [io.BytesIO(b"raw"), named]
