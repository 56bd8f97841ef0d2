# What Python's own library has beside JSON's types.
# {} -> [1.5, 7, 90.0, "12345678-1234-5678-1234-567812345678", [1, 2], [0, 1]]

import datetime
import decimal
import uuid
from collections import deque
from typing import Any

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Any:
        return [
            decimal.Decimal("1.5"),
            decimal.Decimal(7),
            datetime.timedelta(seconds=90),
            uuid.UUID("12345678-1234-5678-1234-567812345678"),
            deque([1, 2]),
            range(2),
        ]
