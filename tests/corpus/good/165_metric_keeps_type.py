# A metric keeps its type.
# {} -> failed: metric 'a' is int, not str; delete it first

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        scope = current_scope()
        scope.record_metric("a", 1)
        scope.record_metric("a", "x")
