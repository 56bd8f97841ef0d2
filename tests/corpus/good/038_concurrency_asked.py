# A worker gets no more slots than it asks for.
# cog.yaml: predict: predict.py:Predictor
# cog.yaml: concurrency: {max: 30}
# slots: 2 -> ready 2
# {"n": 1} -> 1

from cog import BasePredictor


class Predictor(BasePredictor):
    async def predict(self, n: int) -> int:
        return n
