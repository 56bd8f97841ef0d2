# A dict with keys that JSON has not.
# refused: invalid input field d: Dict cannot have keys of type Path

from typing import Dict

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(
        self,
        d: Dict[Path, int],  # <- here
    ) -> str:
        return ""
