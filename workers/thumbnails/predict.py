"""An image in, ever larger thumbnails of it out: files that appear one after the other."""

import os
import tempfile
import time
from collections.abc import Iterator

from cog import BasePredictor, Input, Path
from PIL import Image, ImageOps


class Predictor(BasePredictor):
    test_inputs = {"image": Path("chelsea.jpg"), "count": 3}

    def setup(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="thumbnails-")

    def predict(
        self,
        image: Path = Input(description="The picture, in any format that Pillow reads"),
        smallest: int = Input(description="Longer side of the first thumbnail, in pixels", default=32, ge=1, le=4096),
        count: int = Input(description="How many; each is twice the size of the one before", default=5, ge=1, le=10),
        pause: float = Input(description="Seconds between two, to watch them come", default=0.0, ge=0, le=10),
    ) -> Iterator[Path]:
        # The files of a prediction are uploaded while it runs and when it ends: they can go when the next one starts.
        self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory(prefix="thumbnails-")

        with Image.open(image) as opened:
            print(f"{opened.format} of {opened.width} x {opened.height} pixels")
            picture = ImageOps.exif_transpose(opened).convert("RGB")

        sides = [smallest * 2**doublings for doublings in range(count)]
        beyond = [side for side in sides if side >= max(picture.size)]  # the first of these is the picture's own size
        sides = sides[: len(sides) - len(beyond) + 1]
        for number, side in enumerate(sides, start=1):
            if number > 1:
                time.sleep(pause)
            thumbnail = picture.copy()
            thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)  # never larger than the picture
            path = Path(os.path.join(self.folder.name, f"thumbnail-{number}-{thumbnail.width}x{thumbnail.height}.jpg"))
            thumbnail.save(path, quality=90)
            print(f"thumbnail {number} of {len(sides)}: {thumbnail.width} x {thumbnail.height} pixels")
            yield path
