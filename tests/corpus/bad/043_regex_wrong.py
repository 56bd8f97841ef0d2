# regex that is none.
# refused: regex='(' is none: missing ), unterminated subpattern at position 0: s: str

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        s: str = Input(regex="("),  # <- here
    ) -> str:
        return ""
