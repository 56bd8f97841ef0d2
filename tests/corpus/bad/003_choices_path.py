# choices of a Path.
# refused: incompatible input type for choices: p: Path

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self,
        p: Path = Input(choices=["a", "b"]),  # <- here
    ) -> str:
        return ""
