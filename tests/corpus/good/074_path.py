# A Path is a local file with the URL's name.
# {"x": "https://h/dir/a.png"} -> ["a.png", "a.png", true]
# {"x": "data:text/plain,hello"} -> ["file", "hello", true]
# {"x": "ftp://h/a"} -> refused: invalid input value: x='ftp:…' is no URL of scheme data, http or https
# {"x": "/etc/passwd"} -> refused: invalid input value: x='/etc/passwd' is no URL of scheme data, http or https
# {"x": 1} -> refused: invalid input value: x=1 is not a valid str

from typing import Any

from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, x: Path) -> Any:
        return [x.name, x.read_text(), isinstance(x, Path)]
