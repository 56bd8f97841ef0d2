# Files in a dataclass; it is built when they are there.
# {"x": {"image": "https://h/a", "more": ["https://h/b", "https://h/c"]}} -> ["a", "b", "c"]
# {"x": {"image": "gopher://h"}} -> refused: invalid input value: x: image: is no URL of scheme data, http or https

from dataclasses import dataclass, field
from typing import List
from typing import Any

from cog import BasePredictor, Path


@dataclass
class Options:
    image: Path
    more: List[Path] = field(default_factory=list)

    def __post_init__(self):
        self.text = self.image.read_text()


class Predictor(BasePredictor):
    def predict(self, x: Options) -> Any:
        return [x.text, *(p.read_text() for p in x.more)]
