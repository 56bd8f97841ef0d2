# What is derived from a URLPath is a Path.
# {"x": "https://h/dir/a.b.txt"} -> ["a.b.txt", ".txt", "a.zip", "Path"]

from cog import BasePredictor, URLPath


class Predictor(BasePredictor):
    def predict(self, x: URLPath) -> list:
        other = x.with_suffix("").with_suffix(".zip")
        return [x.name, x.suffix, other.name, "Path" if isinstance(x.parent, type(x).__mro__[1]) else "none"]
