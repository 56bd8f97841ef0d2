# Names of four segments.
# {} -> null metrics {"a.b.c.d1": true}

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        current_scope().record_metric("a.b.c.d1", True)
