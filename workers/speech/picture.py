"""What the speech model shows of a recording: bars for a terminal, and a picture of sound, odds and pieces."""

from collections.abc import Sequence

WIDTH, SOUND, ODDS, EDGE = 800, 120, 40, 24
"""Pixels: the whole picture, the height of both parts, and what is left free around them."""
BLOCKS = " ▁▂▃▄▅▆▇█"


def bars(odds: Sequence[float], width: int = 60) -> str:
    """The odds of speech over time, as one line of at most `width` characters."""
    share = max(1, -(-len(odds) // width))
    groups = (odds[at : at + share] for at in range(0, len(odds), share))
    return "".join(BLOCKS[round(max(group) * (len(BLOCKS) - 1))] for group in groups)


def svg(
    samples: Sequence[int], rate: int, odds: Sequence[float], step: int, pieces: Sequence[tuple[float, float]]
) -> str:
    """The sound, what is speech marked with its seconds, and the odds of speech below it."""
    seconds = max(len(samples) / rate, 0.001)
    inner = WIDTH - 2 * EDGE
    height = EDGE + SOUND + ODDS + 2 * EDGE
    middle, floor = EDGE + SOUND / 2, EDGE + SOUND + ODDS + 8

    def x(second: float) -> float:
        return round(EDGE + inner * second / seconds, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for start, end in pieces:
        wide = round(x(end) - x(start), 1)
        parts += [
            f'<rect x="{x(start)}" y="{EDGE}" width="{wide}" height="{SOUND}" rx="4" fill="#cdeccf"/>',
            f'<text x="{x(start)}" y="{EDGE - 7}" fill="#1b6e2a">{start:.2f} to {end:.2f} s</text>',
        ]
    columns = min(inner, len(samples))
    loudest = max(1, *map(abs, samples)) if samples else 1
    line = []
    for column in range(columns):
        group = samples[column * len(samples) // columns : (column + 1) * len(samples) // columns]
        up, down = (round(middle - SOUND / 2 * value / loudest, 1) for value in (max(group), min(group)))
        line.append(f"M{EDGE + column} {up}V{down + 0.5}")
    parts.append(f'<path d="{"".join(line)}" stroke="#3b5b8c" fill="none"/>')
    points = " ".join(f"{x((at + 0.5) * step / rate)},{round(floor - ODDS * odd, 1)}" for at, odd in enumerate(odds))
    parts += [
        f'<polyline points="{points}" stroke="#1b6e2a" stroke-width="1.5" fill="none"/>',
        f'<path d="M{EDGE} {floor}H{WIDTH - EDGE}" stroke="#888"/>',
    ]
    every = next((every for every in (1, 2, 5, 10, 30, 60, 300) if seconds / every <= 20), 3600)
    for second in range(0, int(seconds) + 1, every):
        parts.append(f'<text x="{x(second)}" y="{floor + 18}" fill="#555" text-anchor="middle">{second} s</text>')
    return "\n".join([*parts, "</svg>", ""])
