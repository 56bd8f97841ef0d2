# The schema of files, secrets, lists and what is Optional.
# schema Input.properties.p: {"type": "string", "format": "uri", "title": "P", "x-order": 0}
# schema Input.properties.k: {"type": "string", "format": "password", "writeOnly": true, "x-cog-secret": true, "title": "K", "x-order": 1}
# schema Input.properties.xs: {"type": "array", "items": {"type": "string"}, "title": "Xs", "x-order": 2, "default": ["a"]}
# schema Input.properties.o: {"type": "integer", "title": "O", "x-order": 3, "nullable": true}
# schema Input.required: ["p", "k"]

from typing import List, Optional
from typing import Any

from cog import BasePredictor, Path, Secret


class Predictor(BasePredictor):
    def predict(self, p: Path, k: Secret, xs: List[str] = ["a"], o: Optional[int] = None) -> Any:
        return ""
