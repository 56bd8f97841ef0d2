# A model that is not async gets one slot, however many the worker would use; its logs are the process's.
# slots: 4 -> ready 1
# {"n": 3} -> ["TextIOWrapper", 3]
# log: three

import sys

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, n: int) -> list:
        print("three")
        return [type(sys.stdout).__name__, n]
