# The coders that come along may be registered; they change nothing.
# {"x": {"image": "https://h/a"}, "s": ["1"]} -> [1, "a"]

from dataclasses import dataclass
from typing import Set
from typing import Any

from cog import BasePredictor, Coder, Path


from cog.coder.dataclass_coder import DataclassCoder
from cog.coder.set_coder import SetCoder

Coder.register(DataclassCoder)
Coder.register(SetCoder)


@dataclass
class Options:
    image: Path


class Predictor(BasePredictor):
    def predict(self, x: Options, s: Set[int]) -> Any:
        return [*s, x.image.read_text()]
