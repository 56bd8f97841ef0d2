# A file as output that is not there.
# {} -> failed: The output /nowhere/a.png is not a file: write it before it is returned.

from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return Path("/nowhere/a.png")
