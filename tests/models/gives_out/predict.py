"""A predictor that gives out whatever it is told to, as a file or as text."""

import os
import tempfile
from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, how: str, path: str = "") -> Any:
        """`how`: words of text, link, hard_link, folder, environment; with `yields` the file is yielded."""
        words = how.split()
        if "environment" in words:
            return dict(os.environ)
        if "text" in words:
            return path
        given = Path(self.place(words[-1], path))
        return self.one(given) if "yields" in words else given

    @staticmethod
    def one(given: Path) -> Any:
        yield given

    @staticmethod
    def place(how: str, path: str) -> str:
        """Where it is given out: under another name in the temporary folder, or where it lies."""
        own = os.path.join(tempfile.mkdtemp(), "out.txt")
        if how == "link":
            os.symlink(path, own)
        elif how == "hard_link":
            os.link(path, own)
        elif how == "folder":
            os.symlink(os.path.dirname(path), os.path.join(os.path.dirname(own), "folder"))
            own = os.path.join(os.path.dirname(own), "folder", os.path.basename(path))
        elif how == "own_link":
            real = os.path.join(tempfile.mkdtemp(), "real.txt")
            with open(real, "w") as file:
                file.write("content")
            os.symlink(real, own)
        else:
            return path
        return own
