# File still works, with a warning.
# {"x": "https://h/a"} -> "a"
# log: x: File: File is the old way, declare cog.Path

from typing import Any

from cog import BasePredictor, File


class Predictor(BasePredictor):
    def predict(self, x: File) -> Any:
        return x.read().decode()
