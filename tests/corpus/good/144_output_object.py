# What has no form in JSON.
# {} -> failed: An output of type object cannot be sent: return text, numbers, lists, dicts, a BaseModel, or cog.Path for a file.

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return object()
