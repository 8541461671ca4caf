"""The two plots of a bench: how many jobs a second, and how soon a job starts."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.contenders import OURS
from bench.results import CaseResult, Figure

THROUGHPUT = (("noop", "No-ops"), ("order", "Orders, a transaction each"))
"""Cases, and what their panels say."""
OURS_COLOUR, COLOUR, PALE = "#b5452c", "#7d8a96", 0.45
INK = {"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "bench", "axes.axisbelow": True}
SIZE = (9.0, 3.4)  # inches


def draw(folder: Path, results: Sequence[CaseResult]) -> list[Path]:
    """Write throughput and latency, as PNG and SVG, from the cases that ran. Returns the files."""
    # Installed by `make bench` alone, so neither imported at the top nor known to the type checkers.
    matplotlib: Any = import_module("matplotlib")
    figure_module: Any = import_module("matplotlib.figure")
    written: list[Path] = []
    with matplotlib.rc_context(INK):
        panels = [(found, title) for name, title in THROUGHPUT for found in _figures(results, name)]
        if panels:
            plot = figure_module.Figure(figsize=SIZE, layout="constrained")
            for axes, (found, title) in zip(plot.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                _bars(axes, sorted(found, key=_median), title)
            written += _save(plot, folder / "throughput")
        for found in _figures(results, "latency"):
            plot = figure_module.Figure(figsize=SIZE, layout="constrained")
            _waits(plot.subplots(), found)
            written += _save(plot, folder / "latency")
    return written


def _figures(results: Sequence[CaseResult], name: str) -> list[list[Figure]]:
    """The measured figures of a case, as the one item of a list; none where it didn't run."""
    found = [figure for case in results if case.name == name for figure in case.figures]
    measured = [figure for figure in found if figure.spread.median is not None]
    return [measured] if measured else []


def _median(figure: Figure) -> float:
    return figure.spread.median or 0.0


def _colour(name: str) -> str:
    return OURS_COLOUR if name.startswith(OURS.name) else COLOUR


def _bars(axes: Any, found: Sequence[Figure], title: str) -> None:
    """Jobs a second, with the least and the greatest run as whiskers."""
    names, medians = [figure.name for figure in found], [_median(figure) for figure in found]
    around = [
        [_median(figure) - (figure.spread.low or 0.0) for figure in found],
        [(figure.spread.high or 0.0) - _median(figure) for figure in found],
    ]
    bars = axes.barh(names, medians, xerr=around, color=[_colour(name) for name in names], ecolor="#333333", capsize=2)
    axes.bar_label(bars, [f" {median:,.0f}" for median in medians], label_type="edge", fontsize=8, padding=2)
    axes.set_title(f"{title}, jobs/s", fontsize=9, loc="left")
    _plain(axes, max(medians) * 1.22, "{x:,.0f}")


def _waits(axes: Any, found: Sequence[Figure]) -> None:
    """p50 and p99 of each, on a logarithmic axis: as it comes, arq waits two hundred times longer than most."""
    tails = {figure.name: _median(figure) for figure in found if figure.measure == "p99"}
    middles = {figure.name: _median(figure) for figure in found if figure.measure == "p50"}
    names = sorted(middles, key=lambda name: middles[name], reverse=True)
    for place, name in enumerate(names):
        ends, colour = [middles[name], tails[name]], _colour(name)
        axes.plot(ends, [place, place], color=colour, linewidth=3, alpha=PALE)
        axes.scatter(ends, [place, place], s=42, color=[colour, "white"], edgecolors=colour, linewidths=1.5, zorder=3)
        axes.text(tails[name] * 1.18, place, f"{middles[name]:.1f} / {tails[name]:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.set_title("Idle worker, enqueue → start: p50 (full) and p99 (hollow), ms", fontsize=9, loc="left")
    _plain(axes, max(tails.values()) * 3, "{x:g}")


def _plain(axes: Any, upto: float, ticks: str) -> None:
    axes.set_xlim(right=upto)
    axes.xaxis.set_major_formatter(ticks)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _save(plot: Any, stem: Path) -> list[Path]:
    """A white ground: the page that shows them may be dark."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    plot.savefig(png, dpi=160, metadata={"Software": None})
    plot.savefig(svg, metadata={"Date": None})
    return [png, svg]
