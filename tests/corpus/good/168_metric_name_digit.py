# A metric cannot be called 1a.
# {} -> failed: metric name '1a' is not allowed: up to 4 segments joined by dots, 128 characters in all, each segment of letters, digits and single underscores, a letter first and a letter or digit last

from typing import Any

from cog import BasePredictor, current_scope


class Predictor(BasePredictor):
    def predict(self, x: int = 1) -> Any:
        current_scope().record_metric("1a", 1)
