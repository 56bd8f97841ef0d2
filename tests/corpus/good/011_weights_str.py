# Weights as text, from the environment.
# environment: COG_WEIGHTS=https://h/w.tar
# {} -> ["str", "https://h/w.tar"]

from typing import List, Optional

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def setup(self, weights: str = None) -> None:
        self.weights = weights

    def predict(self) -> List[str]:
        return [type(self.weights).__name__, str(self.weights)]
