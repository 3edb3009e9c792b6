"""Curves as a small SVG document, for readers in the light and in the dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 300
_TOP, _BOTTOM = 56, 44
_PANEL_WIDTH, _LEFT = 300, 52
_STEPS = (1, 2, 2.5, 5, 10)

# Of 4.5:1 and more on the page's own background, which shows through.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #424a53 }
.title { font-size: 14px; font-weight: 600; fill: #1f2328 }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.limit { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 5 4 }
text.limit { stroke: none; fill: #cf222e }
.line { fill: none; stroke-width: 2 }
.a { stroke: #0969da } circle.a, text.a { stroke: none; fill: #0969da }
.b { stroke: #8250df } circle.b, text.b { stroke: none; fill: #8250df }
.c { stroke: #1a7f37 } circle.c, text.c { stroke: none; fill: #1a7f37 }
.other { stroke-dasharray: 2 4 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title { fill: #f0f6fc } .grid { stroke: #3d444d }
  .limit { stroke: #f85149 } text.limit { fill: #f85149 }
  .a { stroke: #4493f8 } circle.a, text.a { fill: #4493f8 }
  .b { stroke: #ab7df8 } circle.b, text.b { fill: #ab7df8 }
  .c { stroke: #3fb950 } circle.c, text.c { fill: #3fb950 }
}
"""


@dataclass(frozen=True)
class Curve:
    """One line of a chart; a dotted one is for comparison."""

    name: str
    values: Sequence[float]
    color: str  # "a", "b" or "c"
    dotted: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over the same labels, and a line that they should stay under, if there is one."""

    title: str
    labels: Sequence[str]
    below: str  # what the labels are
    curves: Sequence[Curve]
    limit: float | None = None
    limit_name: str = ""


def draw(charts: Sequence[Chart], description: str) -> str:
    """Return an SVG document with charts side by side."""
    width = _WIDTH * len(charts) // 2
    body = "\n".join(
        part for number, chart in enumerate(charts) for part in _chart(chart, number * _WIDTH // 2)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" '
        f'width="{width}" height="{_HEIGHT}" role="img">\n'
        f"<title>{escape(description)}</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def _chart(chart: Chart, left: int) -> list[str]:
    most = max(*(max(curve.values) for curve in chart.curves), chart.limit or 0.0)
    ticks = _ticks(most)
    x0, x1, y0, y1 = left + _LEFT, left + _LEFT + _PANEL_WIDTH, _HEIGHT - _BOTTOM, _TOP

    def x(number: int) -> float:
        return x0 + (x1 - x0) * number / max(1, len(chart.labels) - 1)

    def y(value: float) -> float:
        return y0 - (y0 - y1) * value / ticks[-1]

    parts = [_text(x0, 20, chart.title, "title")]
    for tick in ticks:
        parts.append(_line(x0, y(tick), x1, y(tick), "grid"))
        parts.append(_text(x0 - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
    for number, label in enumerate(chart.labels):
        parts.append(_text(x(number), y0 + 18, label, anchor="middle"))
    parts.append(_text((x0 + x1) / 2, y0 + 36, chart.below, anchor="middle"))
    if chart.limit is not None:
        parts.append(_line(x0, y(chart.limit), x1, y(chart.limit), "limit"))
        parts.append(_text(x1, y(chart.limit) - 5, chart.limit_name, "limit", "end"))
    named = x0
    for curve in chart.curves:
        parts += _curve(curve, x, y)
        parts.append(_text(named, 40, ("┄ " if curve.dotted else "— ") + curve.name, curve.color))
        named += 7 * len(curve.name) + 30
    return parts


def _curve(curve: Curve, x: Callable[[int], float], y: Callable[[float], float]) -> list[str]:
    points = [(x(number), y(value)) for number, value in enumerate(curve.values)]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    dotted = " other" if curve.dotted else ""
    parts = [f'<polyline class="line {curve.color}{dotted}" points="{path}"/>']
    if not curve.dotted:
        parts += [
            f'<circle class="{curve.color}" cx="{px:.1f}" cy="{py:.1f}" r="3"/>'
            for px, py in points
        ]
    return parts


def _ticks(most: float) -> list[float]:
    """Return round values from zero to at least the given one."""
    most = most or 1.0
    magnitude = 10.0 ** math.floor(math.log10(most / 4))
    step = next(size * magnitude for size in _STEPS if size * magnitude * 4 >= most)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _line(x0: float, y0: float, x1: float, y1: float, style: str) -> str:
    return f'<line class="{style}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{escape(text)}</text>'
