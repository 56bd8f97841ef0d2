# The name predict_time is reserved.
# {} -> failed: metric name 'predict_time' is reserved

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        current_scope().record_metric("predict_time", 1)
