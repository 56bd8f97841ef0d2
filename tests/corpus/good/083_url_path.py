# URLPath is fetched when it is used.
# {"x": "data:text/plain;base64,aGVsbG8="} -> ["data:text/plain;base64,aGVsbG8=", "hello", "hello", true]
# {"x": "ftp://h/a"} -> refused: invalid input value: x='ftp:…' is no URL of scheme data, http or https

from typing import Any

from cog import BasePredictor, Path, URLPath


class Predictor(BasePredictor):
    def predict(self, x: URLPath) -> Any:
        return [str(x), x.convert().read_text(), open(x).read(), isinstance(x, Path)]
