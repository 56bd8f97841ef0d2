"""A picture in, the text in it out: line by line, with where it stands, and the picture with that drawn into it."""

import tempfile

from cog import BaseModel, BasePredictor, Input, Path
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rapidocr import RapidOCR

MOST_PIXELS = 50_000_000
INK = "#18ffff"


class Line(BaseModel):
    text: str
    score: float
    corners: list[list[float]]


class Output(BaseModel):
    text: str
    lines: list[Line]
    picture: Path


class Predictor(BasePredictor):
    test_inputs = {"image": Path("kiosk.png")}

    def setup(self) -> None:
        self.reader = RapidOCR(params={"Global.log_level": "warning"})
        self.folder = tempfile.TemporaryDirectory(prefix="ocr-")

    def predict(
        self,
        image: Path = Input(description="The picture, in any format that Pillow reads"),
        score: float = Input(description="How sure the network must be of a line, 0 to 1", default=0.5, ge=0, le=1),
    ) -> Output:
        # What the last prediction gave out has been uploaded by now.
        self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory(prefix="ocr-")

        with Image.open(image) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"the picture has {opened.width} x {opened.height} pixels: more than {MOST_PIXELS:,}")
            picture = ImageOps.exif_transpose(opened).convert("RGB")

        found = self.reader(picture, text_score=score)
        lines = [
            Line(text=text, score=round(float(sure), 4), corners=corners.round(1).tolist())
            for text, sure, corners in zip(found.txts or (), found.scores or (), found.boxes if found.txts else ())
        ]
        for line in lines:
            print(f"{line.score:.2f}  {line.text}")
        path = Path(self.folder.name) / "lines.png"
        draw(picture, lines)
        picture.save(path, optimize=True)
        return Output(text="\n".join(line.text for line in lines), lines=lines, picture=path)


def draw(picture: Image.Image, lines: list[Line]) -> None:
    """A frame around every line, with its number."""
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=14)
    for number, line in enumerate(lines, start=1):
        corners = [(x, y) for x, y in line.corners]
        pen.polygon(corners, outline=INK, width=2)
        x, y = corners[0]
        pen.rectangle(pen.textbbox((x, y - 18), f" {number} ", font=font), fill=INK)
        pen.text((x, y - 18), f" {number} ", font=font, fill="black")
