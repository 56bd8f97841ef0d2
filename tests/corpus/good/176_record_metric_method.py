# record_metric() and scope of the base class.
# {} -> null metrics {"a": 1}

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self) -> Any:
        self.record_metric("a", 1)
