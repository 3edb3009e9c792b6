import xml.etree.ElementTree as ET

import pytest

from benchmarks.durable_steps import Round, Speed, missed, render
from benchmarks.parts import RESULTS, replace_figures
from benchmarks.picture import Chart, Curve, draw
from benchmarks.run import PARTS


def speed(per_second: float) -> Speed:
    return Speed(
        operations=10, per_second=per_second, p50_ms=1, p99_ms=2, cpu_ms=1, other_cores=0.1
    )


def beside_dbos(dbos: float, ours: float) -> Round:
    speeds = {"dbos": dbos, "gateway, in process": ours, "gateway, over HTTP": ours / 2}
    return Round("sqlite", {name: speed(per_second) for name, per_second in speeds.items()})


def test_figures_replace_those_of_their_own_part_only() -> None:
    document = RESULTS.read_text()
    for part in PARTS:
        replaced = replace_figures(document, part.name, "nothing")
        assert "-->\n\nnothing\n\n<!--" in replaced
        assert replaced.startswith(document.partition("<!-- figures of " + part.name)[0])
    with pytest.raises(ValueError, match="there is no place marked"):
        replace_figures(document, "other", "nothing")


def test_the_ratio_to_the_library_is_the_median_of_the_rounds() -> None:
    # A machine that is twice as fast in the second round changes nothing.
    assert missed([beside_dbos(10, 210), beside_dbos(20, 420), beside_dbos(10, 100)]) == []
    (slow,) = missed([beside_dbos(10, 190)])
    assert "19.0 times" in slow
    assert "| at least 20 | MISSED" in render([beside_dbos(10, 190)], [], 1.0)


def test_a_picture_is_a_document_for_light_and_dark() -> None:
    chart = Chart("Memory & more", ["0", "1k"], "sleepers", [Curve("MB", [90, 310], "a")], 300, "<")
    picture = draw([chart, chart], "two charts")
    ET.fromstring(picture)  # noqa: S314  # our own
    assert "prefers-color-scheme: dark" in picture


def test_curves_of_nothing_are_drawn_too() -> None:
    assert "<polyline" in draw([Chart("", ["0"], "", [Curve("", [0.0], "b")])], "nothing")
