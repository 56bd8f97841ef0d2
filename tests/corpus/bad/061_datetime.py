# A datetime.
# refused: invalid input field dt: unsupported Cog type datetime

import datetime

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(
        self,
        dt: datetime.datetime,  # <- here
    ) -> str:
        return ""
