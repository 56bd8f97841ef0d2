# A BaseModel: fields that were never set are left out.
# {} -> {"a": 1, "note": null}

from typing import Optional
from typing import Any

from cog import BaseModel, BasePredictor


class Output(BaseModel):
    a: int
    note: Optional[str]
    other: Optional[str]
    n: int = 3


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Output:
        return Output(a=1, note=None)
