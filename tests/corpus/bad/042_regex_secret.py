# regex of a Secret.
# refused: incompatible input type for regex: k: Secret

from cog import BasePredictor, Input, Secret


class Predictor(BasePredictor):
    def predict(
        self,
        k: Secret = Input(regex="1"),  # <- here
    ) -> str:
        return ""
