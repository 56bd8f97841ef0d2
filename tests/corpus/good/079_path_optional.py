# An Optional file.
# {} -> null
# {"x": "https://h/a"} -> "a"

from typing import Optional
from typing import Any

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(self, x: Optional[Path] = Input(default=None)) -> Any:
        return x and x.read_text()
