# All that Input() takes, where it goes together.
# {"x": 5, "p": "https://h/a.png"} -> 5

from typing import Any

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self, x: int = Input(description="n", ge=1, le=10, deprecated=True), p: Path = Input(accept="image/*")
    ) -> Any:
        return x
