"""A predictor whose setup takes more than a second, and logs."""

import subprocess
import time

from cog import BasePredictor

print("importing")


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("loading weights")
        subprocess.call(["sh", "-c", "echo from a child >&2"])
        time.sleep(1.2)
        print("setup done")

    def predict(self, seconds: float) -> str:
        time.sleep(seconds)
        return f"slept {seconds:g}"
