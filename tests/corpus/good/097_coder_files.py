# A Coder may put files out.
# {"s": "a"} -> {"file": null} files {"out.txt": "a"}

from typing import Any

from cog import BasePredictor, Coder, Path


class Made:
    def __init__(self, text):
        self.text = text


class MadeCoder(Coder):
    @staticmethod
    def factory(tpe):
        return MadeCoder() if tpe is Made else None

    def encode(self, value):
        with open("out.txt", "w") as file:
            file.write(value.text)
        return {"file": Path("out.txt")}

    def decode(self, value):
        return Made(value)


Coder.register(MadeCoder)


class Predictor(BasePredictor):
    def predict(self, s: str) -> Any:
        return Made(s)
