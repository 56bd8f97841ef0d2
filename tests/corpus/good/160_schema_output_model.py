# The schema of a model as output.
# schema Output: {"title": "Output", "type": "object", "properties": {"text": {"title": "Text", "type": "string"}, "note": {"title": "Note", "type": "string", "nullable": true}}, "required": ["text"]}

from typing import Optional
from typing import Any

from cog import BaseModel, BasePredictor


class Answer(BaseModel):
    text: str
    note: Optional[str]


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Answer:
        return Answer(text="")
