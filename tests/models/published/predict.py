import json
import os
import sys
import time
from pathlib import Path

import cog
import pydantic
import redis  # the model's own, found by the image's PYTHONPATH


class Predictor(cog.BasePredictor):
    def setup(self) -> None:
        self.weights = Path.home().joinpath(".cache/weights/answer").read_text().strip()
        Path("made-by-setup").write_text("beside the model, as models do")
        Path.home().joinpath(".cache/weights/made-by-setup").write_text("in the cache, as their libraries do")

    def predict(
        self,
        name: str = cog.Input(description="A name"),
        seconds: float = cog.Input(description="How long it takes", default=0, ge=0),
    ) -> str:
        print("began")
        time.sleep(seconds)
        seen = {
            "name": name,
            "weights": self.weights,
            "python": list(sys.version_info[:2]),
            "pydantic": pydantic.VERSION,
            "redis": redis.WHOSE,
            "cog": cog.__file__,
            "user": os.getuid(),
            "variables": sorted(os.environ),
        }
        return json.dumps(seen)
