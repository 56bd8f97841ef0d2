# A generator is recognised by what is returned, whatever the annotation says.
# {"many": true} -> yields [1, 2]
# {"many": false} -> 1

from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, many: bool) -> Any:
        return iter([1, 2]) if many else 1
