# The working directory is the model's folder, sys.argv has a name only.
# {} -> [["predict.py"], true, "predict"]

import os
import sys
from typing import Any

from cog import BasePredictor

ARGV = list(sys.argv)


class Predictor(BasePredictor):
    def predict(self) -> Any:
        return [ARGV, os.path.samefile(os.getcwd(), os.path.dirname(__file__)), __name__]
