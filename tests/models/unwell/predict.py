"""A predictor whose health is a file: it is unhealthy while the one named by UNWELL_FILE exists, for what it says."""

import os
import time

from cog import BasePredictor, Input

FILE = os.environ["UNWELL_FILE"]


class Predictor(BasePredictor):
    def predict(self, text: str = Input(default="world"), until: str = Input(default="")) -> str:
        """`until`: a file that is waited for."""
        while until and not os.path.exists(until):
            time.sleep(0.01)
        return "hello " + text

    def healthcheck(self) -> bool:
        try:
            with open(FILE) as f:
                raise RuntimeError(f.read())
        except FileNotFoundError:
            return True
