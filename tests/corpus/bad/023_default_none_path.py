# default=None of a Path.
# refused: error-prone usage of default=None

from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self,
        p: Path = Input(default=None),  # <- here
    ) -> str:
        return ""
