"""A few words in, more words out, one at a time: a model of which words follow which, learned from Python's manual."""

import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Optional

from cog import BasePredictor, ConcatenateIterator, Input

LONGEST = 3
"""Words that the model looks back at most."""

Model = dict[tuple[str, ...], list[str]]


def paragraphs() -> Iterator[list[str]]:
    """The words of every paragraph of prose: whole sentences, no code, no tables."""
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            indented = re.search(r"^\s", paragraph, re.MULTILINE)
            if paragraph[:1].isupper() and paragraph.endswith(".") and not indented:
                plain = re.sub(r"[*`“”\"]", "", paragraph)
                if not re.search(r"[][{}=<>|\\_]|\(.*,|\b\w+\(", plain):
                    yield plain.split()


class Predictor(BasePredictor):
    test_inputs = {"prompt": "The class", "words": 40, "seed": 7}

    def setup(self) -> None:
        started = time.perf_counter()
        follows: Model = defaultdict(list)
        texts = list(paragraphs())
        for words in texts:
            for at, word in enumerate(words):
                for back in range(min(LONGEST, at) + 1):
                    follows[tuple(words[at - back : at])].append(word)
        self.follows = dict(follows)
        self.beginnings = [words[0] for words in texts]
        seconds = time.perf_counter() - started
        print(f"learned from {sum(map(len, texts)):,} words in {seconds:.2f} s: {len(follows):,} contexts")

    def predict(  # type: ignore[misc]
        self,
        prompt: str = Input(description="How it begins; without one the model thinks of something", default=""),
        words: int = Input(description="How many words to add", default=60, ge=1, le=1000),
        memory: int = Input(
            description="How many words it looks back: more is truer, and duller", default=2, ge=1, le=LONGEST
        ),
        seed: Optional[int] = Input(description="The same seed gives the same text", default=None),
        pause: float = Input(description="Seconds between two words, to watch them come", default=0.0, ge=0, le=1),
    ) -> ConcatenateIterator[str]:
        dice = random.Random(seed)
        text = prompt.split() or [dice.choice(self.beginnings)]
        yield " ".join(text)
        for _ in range(words):
            time.sleep(pause)
            word = dice.choice(self.candidates(text[-memory:]))
            text.append(word)
            yield f" {word}"

    def candidates(self, context: list[str]) -> list[str]:
        """The words that followed this context, or as much of its end as was ever seen, once for every time."""
        while tuple(context) not in self.follows:
            if context[-1].endswith("."):
                return self.beginnings
            context = context[1:]
        return self.follows[tuple(context)]
