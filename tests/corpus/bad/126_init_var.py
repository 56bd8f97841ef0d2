# A dataclass with an InitVar.
# refused: invalid input field x: Options has an InitVar

from dataclasses import InitVar, dataclass

from cog import BasePredictor


@dataclass
class Options:
    a: int
    scale: InitVar[int]

    def __post_init__(self, scale: int) -> None:
        self.a *= scale


class Predictor(BasePredictor):
    def predict(
        self,
        x: Options,  # <- here
    ) -> str:
        return ""
