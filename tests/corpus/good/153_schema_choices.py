# The schema of choices.
# schema Input.properties.size: {"allOf": [{"$ref": "#/components/schemas/size"}], "x-order": 0, "default": "a"}
# schema size: {"title": "size", "description": "An enumeration.", "enum": ["a", "b"], "type": "string"}
# schema Input.properties.many: {"type": "array", "items": {"$ref": "#/components/schemas/many"}, "title": "Many", "x-order": 1}

from typing import List
from typing import Any

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self, size: str = Input(default="a", choices=["a", "b"]), many: List[int] = Input(choices=[1, 2])
    ) -> Any:
        return ""
