# A class that looks like a model of pydantic 1 is built by its own parse_obj().
# {"x": {"n": 1, "image": "https://h/a"}} -> [1, "a"]
# {"x": {"n": -1, "image": "https://h/a"}} -> failed: invalid input value: x: n is negative

from typing import Any

from cog import BasePredictor, Path


class Field:
    def __init__(self, outer_type_):
        self.outer_type_ = outer_type_
        self.required = True
        self.alias = None


class Options:
    __fields__ = {"n": Field(int), "image": Field(Path)}

    @classmethod
    def parse_obj(cls, given):
        if given["n"] < 0:
            raise ValueError("n is negative")
        made = cls()
        made.__dict__.update(given)
        return made


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return [x.n, x.image.read_text()]
