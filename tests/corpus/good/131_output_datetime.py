# Moments are text.
# {} -> ["2024-01-02T03:04:05", "2024-01-02", "03:04:05"]

import datetime
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        d = datetime.datetime(2024, 1, 2, 3, 4, 5)
        return [d, d.date(), d.time()]
