"""A model that is typed strictly: `make check` sees that the names it imports have the types that it relies on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional, Union

from cog import (
    AsyncConcatenateIterator,
    BaseModel,
    BasePredictor,
    BaseRunner,
    CancelationException,
    Coder,
    ConcatenateIterator,
    Input,
    Path,
    Secret,
    URLFile,
    URLPath,
    concurrent,
    current_scope,
    emit_metric,
    streaming,
)
from cog.coder.dataclass_coder import DataclassCoder
from cog.server.exceptions import CancelationException as OldName

Coder.register(DataclassCoder)


@dataclass
class Options:
    scale: float = 1.0


class Answer(BaseModel):
    text: str
    score: Optional[float] = None


class PointCoder(Coder):
    @staticmethod
    def factory(tpe: Any) -> Optional[Coder]:
        return PointCoder() if tpe is complex else None

    def encode(self, x: complex) -> list[float]:
        return [x.real, x.imag]

    def decode(self, x: list[float]) -> complex:
        return complex(*x)


class Predictor(BasePredictor):
    def setup(self, weights: Optional[Union[Path, str]] = None) -> None:
        self.weights = weights

    def predict(
        self,
        text: str = Input(description="What to say", max_length=100),
        count: int = Input(default=1, ge=1, le=3),
        image: Optional[Path] = Input(default=None),
        key: Optional[Secret] = None,
        options: Optional[Options] = None,
    ) -> Answer:
        scope = current_scope()
        scope.record_metric("words", len(text.split()), mode="incr")
        scope.metrics["count"] = count
        tenant: Optional[str] = scope.context.get("tenant")
        self.record_metric("tenants", tenant or "none")
        emit_metric("count", count)
        if image is not None:
            text += image.read_text()
        if key is not None:
            secret: Optional[str] = key.get_secret_value()
            text += str(len(secret or ""))
        return Answer(text=text * count, score=(options or Options()).scale)

    def wrong(self) -> None:
        Answer(words="a")  # type: ignore[call-arg]
        Answer(text=1)  # type: ignore[arg-type]
        current_scope().unheard_of()  # type: ignore[attr-defined]
        concurrent(max="2")  # type: ignore[call-overload]


class Runner(BaseRunner):
    async def setup(self) -> None:
        self.ready = True

    @concurrent(max=2)
    async def run(self, text: str) -> AsyncConcatenateIterator[str]:  # type: ignore[misc]
        for word in text.split():
            yield word


class Streaming(BasePredictor):
    @streaming
    def predict(self, url: URLPath, file: URLFile) -> ConcatenateIterator[str]:  # type: ignore[misc]
        try:
            yield url.convert().read_text()
            yield file.read().decode()
        except (CancelationException, OldName):
            yield "canceled"


def words(text: str) -> Iterator[str]:
    yield from text.split()
