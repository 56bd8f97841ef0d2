# Without weights setup() gets None.
# {} -> ["NoneType", "None"]

from typing import List, Optional

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def setup(self, weights: Optional[Path] = None) -> None:
        self.weights = weights

    def predict(self) -> List[str]:
        return [type(self.weights).__name__, str(self.weights)]
