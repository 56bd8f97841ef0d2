# Files that are yielded survive what comes behind them.
# {} -> yields [null, null] files {"1.txt": "1", "2.txt": "2"}

import os
from typing import Iterator
from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: int = 0) -> Iterator[Path]:
        for n in "12":
            with open(f"{n}.txt", "w") as file:
                file.write(n)
            yield Path(f"{n}.txt")
            os.unlink(f"{n}.txt")
