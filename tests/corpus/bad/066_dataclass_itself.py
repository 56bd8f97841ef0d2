# A dataclass that contains itself.
# refused: invalid input field n: children: Node contains itself

from dataclasses import dataclass
from typing import List

from cog import BasePredictor


@dataclass
class Node:
    children: List["Node"]


class Predictor(BasePredictor):
    def predict(
        self,
        n: Node,  # <- here
    ) -> str:
        return ""
