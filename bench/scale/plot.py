"""A picture of some curves, as SVG in the style of the project's other pictures, for light and dark pages.

It must not know what the curves show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 380, 330
"""Of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 62, 52

_STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; font-size: 13px; fill: #52606d; }
    .title { font-size: 16px; font-weight: 600; fill: #1f2933; }
    .page { fill: #ffffff; stroke: #d9e0e7; }
    .grid { stroke: #e4e9ee; }
    .axis { stroke: #9aa5b1; stroke-width: 1.5; }
    .rule { stroke: #c9564b; stroke-width: 1.5; stroke-dasharray: 6 4; }
    .line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
    .thin { fill: none; stroke: #9aa5b1; stroke-width: 1.5; stroke-dasharray: 3 4; }
    .c0 { stroke: #3f7fb5; } .d0 { fill: #3f7fb5; }
    .c1 { stroke: #b4530a; } .d1 { fill: #b4530a; }
    .c2 { stroke: #5b7f3b; } .d2 { fill: #5b7f3b; }
    @media (prefers-color-scheme: dark) {
      text { fill: #a7b3bf; }
      .title { fill: #e8edf2; }
      .page { fill: #12161b; stroke: #2c343d; }
      .grid { stroke: #232b34; }
      .axis, .thin { stroke: #5b6875; }
      .rule { stroke: #d5746a; }
      .c0 { stroke: #5a9fd6; } .d0 { fill: #5a9fd6; }
      .c1 { stroke: #f2a65a; } .d1 { fill: #f2a65a; }
      .c2 { stroke: #94c26a; } .d2 { fill: #94c26a; }
    }"""  # noqa: E501  # a rule a line


@dataclass(frozen=True)
class Series:
    """A curve; `dashed`: one to compare with, without points."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From the first to the last tick; `log`: equal factors are equal lengths."""

    label: str
    ticks: Sequence[float]
    log: bool = False
    unit: str = ""

    def place(self, value: float) -> float:
        """Where a value is, from 0 to 1 and beyond."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes; `rules`: horizontal lines, and what they say; `low`: the legend is in the lower
    right corner, else in the upper left.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[tuple[float, str]] = field(default_factory=tuple)
    low: bool = False


def picture(title: str, description: str, panels: Sequence[Panel]) -> str:
    """The SVG: panels side by side."""
    width = WIDTH * len(panels) + 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 2}" role="img" '
        'aria-labelledby="title desc">',
        f'  <title id="title">{escape(title)}</title>',
        f'  <desc id="desc">{escape(description)}</desc>',
        f"  <style>{_STYLE}\n  </style>",
        f'  <rect class="page" x="1" y="1" width="{width - 2}" height="{HEIGHT}" rx="14"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'  <g transform="translate({1 + number * WIDTH} 1)">', *_panel(panel), "  </g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return round(LEFT + inner_width * panel.x.place(value), 1)

    def y(value: float) -> float:
        return round(TOP + inner_height * (1 - panel.y.place(value)), 1)

    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    out = [_text(left - 38, 28, panel.title, "title"), _text(left - 38, 49, panel.y.label)]
    for tick in panel.y.ticks:
        out.append(f'    <line class="grid" x1="{left}" y1="{y(tick)}" x2="{right}" y2="{y(tick)}"/>')
        out.append(_text(left - 8, y(tick) + 4, _short(tick) + panel.y.unit, anchor="end"))
    out.append(f'    <line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    for tick in panel.x.ticks:
        out.append(_text(x(tick), bottom + 18, _short(tick) + panel.x.unit, anchor="middle"))
    out.append(_text((left + right) / 2, bottom + 38, panel.x.label, anchor="middle"))
    for value, text in panel.rules:
        out.append(f'    <line class="rule" x1="{left}" y1="{y(value)}" x2="{right}" y2="{y(value)}"/>')
        out.append(_text(right, y(value) - 6, text, anchor="end"))
    color = 0
    for series in panel.series:
        path = " ".join(f"{x(a)},{y(b)}" for a, b in series.points)
        if series.dashed:
            out.append(f'    <polyline class="thin" points="{path}"/>')
        else:
            out.append(f'    <polyline class="line c{color}" points="{path}"/>')
            out += [f'    <circle class="d{color}" cx="{x(a)}" cy="{y(b)}" r="4"/>' for a, b in series.points]
            color += 1
    return out + _legend(panel.series, panel.low)


def _legend(series: Sequence[Series], low: bool) -> list[str]:
    left, top = (WIDTH - RIGHT - 170, HEIGHT - BOTTOM + 4 - 19 * len(series)) if low else (LEFT + 10, TOP + 14)
    out, color = [], 0
    for row, one in enumerate(series):
        height = top + 19 * row
        name = "thin" if one.dashed else f"line c{color}"
        color += not one.dashed
        out.append(f'    <line class="{name}" x1="{left}" y1="{height}" x2="{left + 22}" y2="{height}"/>')
        out.append(_text(left + 29, height + 4, one.label))
    return out


def _text(x: float, y: float, text: str, name: str = "", anchor: str = "") -> str:
    named = f' class="{name}"' if name else ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'    <text{named} x="{x:g}" y="{y:g}"{anchored}>{escape(text)}</text>'


def _short(value: float) -> str:
    if value >= 100_000:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"
