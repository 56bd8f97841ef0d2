# A default file of the model's folder.
# {} -> "# A de"

from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: Path = "predict.py") -> Any:
        return x.read_text()[:6]
