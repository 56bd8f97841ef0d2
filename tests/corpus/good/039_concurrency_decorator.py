# @concurrent.
# slots: 4 -> ready 2
# {"n": 1} -> 1

from cog import BasePredictor, concurrent


class Predictor(BasePredictor):
    @concurrent(max=2)
    async def predict(self, n: int) -> int:
        return n
