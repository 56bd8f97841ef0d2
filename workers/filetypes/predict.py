"""Any file in, what it is out, by a small neural network that looks at its bytes; several files at once."""

import asyncio

from cog import BaseModel, BasePredictor, Input, Path
from magika import Magika, PredictionMode

MODES = [mode.value for mode in PredictionMode]


class FileType(BaseModel):
    label: str
    description: str
    group: str
    mime_type: str
    extensions: list[str]
    is_text: bool
    score: float


class Predictor(BasePredictor):
    test_inputs = {"file": Path("mystery")}

    async def setup(self) -> None:
        self.classifiers = {mode: Magika(prediction_mode=PredictionMode(mode)) for mode in MODES}
        print(f"{self.classifiers[MODES[0]].get_model_name()} is loaded")

    async def predict(
        self,
        file: Path = Input(description="Any file; its name is not looked at"),
        mode: str = Input(
            description="How sure the network must be; below that the answer is only text or unknown",
            choices=MODES,
            default=PredictionMode.HIGH_CONFIDENCE.value,
        ),
    ) -> FileType:
        # In a thread: the network computes without Python's lock, so that other files are looked at meanwhile.
        result = await asyncio.to_thread(self.classifiers[mode].identify_path, file)
        found = result.output
        print(f"{file.stat().st_size:,} bytes of {found.description}")
        return FileType(
            label=str(found.label),
            description=found.description,
            group=found.group,
            mime_type=found.mime_type,
            extensions=found.extensions,
            is_text=found.is_text,
            score=round(result.score, 4),
        )
