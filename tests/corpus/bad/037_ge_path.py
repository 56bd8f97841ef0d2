# ge of a Path.
# refused: incompatible input type for ge/le: p: Path

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self,
        p: Path = Input(ge=1),  # <- here
    ) -> str:
        return ""
