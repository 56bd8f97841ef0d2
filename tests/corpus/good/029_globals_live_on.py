# Module globals and instance state live as long as the runner.
# {} -> [1, 1]
# {} -> [2, 2]

from typing import List

from cog import BasePredictor

count = 0


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.count = 0

    def predict(self) -> List[int]:
        global count
        count += 1
        self.count += 1
        return [count, self.count]
