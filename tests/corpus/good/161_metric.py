# record_metric() sets a metric.
# {} -> null metrics {"tokens": 3}

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        current_scope().record_metric("tokens", 3)
