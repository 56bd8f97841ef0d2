"""Text in, text out: the smallest model there is."""

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    test_inputs = {"text": "world"}

    def setup(self) -> None:
        self.greeting = "hello"

    def predict(self, text: str = Input(description="Whom to greet")) -> str:
        print(f"greeting {text!r}")
        return f"{self.greeting} {text}"
