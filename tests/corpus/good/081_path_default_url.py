# A default URL is fetched.
# {} -> "d.txt"

from typing import Any

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(self, x: Path = Input(default="https://h/d.txt")) -> Any:
        return x.read_text()
