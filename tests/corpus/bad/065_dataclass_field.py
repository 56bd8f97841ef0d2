# A dataclass with a field that no input can have.
# refused: invalid input field o: when: unsupported Cog type datetime

import datetime
from dataclasses import dataclass

from cog import BasePredictor


@dataclass
class Options:
    when: datetime.datetime


class Predictor(BasePredictor):
    def predict(
        self,
        o: Options,  # <- here
    ) -> str:
        return ""
