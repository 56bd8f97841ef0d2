# Weights as a Path, from the environment.
# environment: COG_WEIGHTS=local/w.bin
# {} -> ["Path", "local/w.bin"]

from typing import List, Optional

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def setup(self, weights: Path = None) -> None:
        self.weights = weights

    def predict(self) -> List[str]:
        return [type(self.weights).__name__, str(self.weights)]
