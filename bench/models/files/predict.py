"""Takes a file and says how large it is, gives out one large file, or many small ones: all were made in setup()."""

import os
import tempfile
from typing import Any

from cog import BasePredictor, Input, Path

LARGE = 1_000_000_000
SMALL, COUNT = 100_000, 100


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.made: dict = {}

    def predict(self, what: str = Input(choices=["size", "large", "small"]), file: Path = Input()) -> Any:
        if what == "size":
            return os.path.getsize(file)
        if what == "large":
            return self.make("large.bin", LARGE)
        return [self.make(f"{number}.bin", SMALL) for number in range(COUNT)]

    def make(self, name: str, size: int) -> Path:
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            block = os.urandom(1_000_000)
            with open(path, "wb") as made:
                for start in range(0, size, len(block)):
                    made.write(block[: size - start])
        return Path(path)
