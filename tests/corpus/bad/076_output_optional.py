# An output that is Optional.
# refused: output must not be Optional

from typing import Optional

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self) -> Optional[str]:  # <- here
        return ""
