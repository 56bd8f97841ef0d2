# The name cog.x is reserved.
# {} -> failed: metric name 'cog.x' is reserved

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        current_scope().record_metric("cog.x", 1)
