# Annotations that are text.
# {"xs": ["1"]} -> [1]
# {"xs": [], "o": null} -> []

from __future__ import annotations

from typing import List, Optional

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(self, xs: List[int], o: Optional[str] = Input(default=None)) -> List[int]:
        return xs
