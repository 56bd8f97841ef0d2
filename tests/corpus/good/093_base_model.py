# A BaseModel.
# {"x": {"text": "a"}} -> ["Options", "a", null, 1]
# {"x": {}} -> refused: invalid input value: x: text: field required

from typing import Optional
from typing import Any

from cog import BaseModel, BasePredictor


class Options(BaseModel):
    text: str
    note: Optional[str]
    n: int = 1


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return [type(x).__name__, x.text, x.note, x.n]
