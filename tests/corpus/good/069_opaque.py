# Annotated[T, Opaque] is passed as it is.
# {"x": {"any": [1]}} -> {"any": [1]}
# {"x": 5} -> 5

from typing import Annotated
from typing import Any

from cog import BasePredictor, Opaque


class Unheard:
    pass


class Predictor(BasePredictor):
    def predict(self, x: Annotated[Unheard, Opaque]) -> Any:
        return x
