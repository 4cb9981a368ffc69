"""A posterior as one HTML page that needs nothing else: no script, no font, no picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pmarray
from swag.app.evaluation import Evaluation
from swag.app.svg import Series, chart
from swag.burn_in import FEWEST, BurnIn
from swag.errors import WindowError
from swag.metrics import adaptive_ece, classwise_ece
from swag.posterior import StoredPosterior
from swag.subspace import Spectrum, spectrum
from swag.uncertainty import auroc, fpr95, predictive_entropy, risk_coverage

__all__ = ["Findings", "find", "page", "write"]

_MOST_COLUMNS = 400
"""Of the trajectory, that its principal components are taken from."""

_STYLE = """
:root{color-scheme:light dark;--bg:#fdfdfc;--ink:#1d2126;--soft:#5b636d;--line:#d9dde2;
--c0:#0b6fb3;--c1:#c4501b;--c2:#0a7f5d;--c3:#a8478b;--c4:#8a6d00;--c5:#6b7280;
--good:#0a7f5d;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--ink:#e7eaee;--soft:#9aa4b0;--line:#343b44;
--c0:#6cb8f0;--c1:#f2996e;--c2:#57cfa6;--c3:#e29aca;--c4:#e0c252;--c5:#9aa4b0;--good:#57cfa6;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1020px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}
p{max-width:75ch}.note{color:var(--soft);overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
td.best{font-weight:700}td.good{color:var(--good)}td.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:18px;margin-top:14px}
figure{margin:0}figcaption{color:var(--soft);font-size:.9em}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px}
svg .grid{stroke:var(--line);stroke-width:.7}
svg polyline{fill:none;stroke:var(--c);stroke-width:1.5}
svg circle{fill:var(--c);fill-opacity:.65}svg .faint{opacity:.6}
svg line.mark{stroke:var(--ink);stroke-dasharray:4 3}svg text.mark{fill:var(--ink)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:2px 0;padding:0 0 0 60px;
font-size:.85em}.legend li::before{content:"";display:inline-block;width:10px;height:10px;
border-radius:2px;background:var(--c);margin-right:6px}
"""


@dataclass(frozen=True, slots=True)
class Findings:
    """What the page shows."""

    posterior: StoredPosterior
    """The posterior of all iterates."""
    burn_in: BurnIn[StoredPosterior] | None
    """None where too few iterates are held to tell."""
    spectrum: Spectrum | None
    """Of the iterates held, or of some of them; None where fewer than three are held."""
    iterates: range
    """Those that the spectrum is of."""
    evaluation: Evaluation | None
    """None where the store was not made by ``swag train``."""


def find(posterior: StoredPosterior, evaluation: Evaluation | None) -> Findings:
    """Work out what the page shows; reads up to 400 columns of the trajectory.

    Parameters
    ----------
    posterior
        Of all iterates of a store.
    evaluation
        What `swag.app.evaluation.evaluate` returned, or None.

    Returns
    -------
    Findings
        For `page`.
    """
    held = posterior.n_averaged, posterior.rank
    burn_in = posterior.suggest_burn_in() if posterior.rank >= FEWEST else None
    first, found = held[0] - held[1], None
    every = max(1, -(-held[1] // _MOST_COLUMNS))
    iterates = range(first, held[0], every)
    if len(iterates) >= 3:
        try:
            window = posterior.window(start=first, every=every, center="mean")
            found = spectrum(window._gaussian())
        except WindowError:  # a ring, of which the mean before is not known
            found = None
    return Findings(posterior, burn_in, found, iterates, evaluation)


def write(findings: Findings, path: Path) -> None:
    """Write the page to a file.

    Raises
    ------
    OSError
        It cannot be written.
    """
    path.write_text(page(findings), encoding="utf-8")


def page(findings: Findings) -> str:
    """The page, as text.

    Parameters
    ----------
    findings
        From `find`.

    Returns
    -------
    str
        HTML with its style and its charts in it; it fetches nothing.
    """
    posterior = findings.posterior
    url = posterior._store.url
    parts = [
        f"<p class=note>{escape(url)}, pmarray {escape(pmarray.__version__)}</p>",
        _facts(findings),
    ]
    if findings.evaluation is not None:
        found = findings.evaluation
        parts += [_scores(found), _reliability(found), _outside(found)]
    parts.append(_burn_in(findings))
    if findings.spectrum is not None:
        parts.append(_trajectory(findings, findings.spectrum))
    if findings.evaluation is not None:
        parts.append(_cost(findings.evaluation))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>SWAG posterior: {escape(url)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>SWAG posterior</h1>\n{body}\n</main></body></html>\n"
    )


def _facts(findings: Findings) -> str:
    posterior = findings.posterior
    table = posterior._store.table
    rows = [
        ("parameters", f"{table.size:,}, in tensors: {len(table.entries)}"),
        ("iterates", f"{posterior.n_averaged:,} averaged, {posterior.rank:,} held"),
    ]
    if findings.evaluation is not None:
        found = findings.evaluation
        rows += [
            ("model", found.run.recipe.model),
            ("epochs", f"{found.run.recipe.epochs}, burn-in {found.run.recipe.burn_in:g}"),
            ("draws", f"{found.samples}, scale {found.scale:g}, seed {found.seed}"),
        ]
    return _table((), rows)


def _scores(found: Evaluation) -> str:
    headings = (
        "model",
        "accuracy %",
        "NLL",
        "ECE %",
        "ECE, equal mass %",
        "classwise ECE %",
        "Brier",
        "AURC",
    )
    cells = []
    for row in found.rows:
        s, p = row.scores, row.probabilities
        cells.append(
            (
                f"{100 * s.accuracy:.2f}",
                f"{s.nll:.4f}",
                f"{100 * s.ece:.2f}",
                f"{100 * adaptive_ece(p, found.labels):.2f}",
                f"{100 * classwise_ece(p, found.labels):.3f}",
                f"{s.brier:.4f}",
                f"{risk_coverage(p, found.labels).area:.5f}",
            )
        )
    columns = list(zip(*cells, strict=True))
    best = [max(columns[0], key=float), *(min(column, key=float) for column in columns[1:])]
    rows = [
        (
            row.name,
            *(
                (value, "best") if value == top else value
                for value, top in zip(line, best, strict=True)
            ),
        )
        for row, line in zip(found.rows, cells, strict=True)
    ]
    return (
        "<h2>On the test set</h2>"
        + _table(headings, rows)
        + _note(
            "Better is larger for accuracy and smaller for all others. AURC is the error averaged "
            "over all fractions of the images kept, the most confident first."
        )
    )


def _outside(found: Evaluation) -> str:
    sets = found.rows[0].outside
    if not sets:
        return ""
    headings = ["model", *(f"{name}, {what}" for name in sets for what in ("AUROC", "FPR95 %"))]
    rows = []
    for row in found.rows:
        inside = predictive_entropy(row.probabilities)
        cells = [row.name]
        for probabilities in row.outside.values():
            entropy = predictive_entropy(probabilities)
            cells += [f"{auroc(inside, entropy):.4f}", f"{100 * fpr95(inside, entropy):.1f}"]
        rows.append(cells)
    images = len(next(iter(sets.values())))
    return (
        "<h2>Out of distribution</h2>"
        + _table(headings, rows)
        + _note(
            f"How well the entropy of the prediction tells {images:,} test images turned by 90 "
            "degrees, and as many of noise, from the test set. AUROC: larger is better. FPR95: how "
            "many of them pass where 95 % of the test set do."
        )
    )


def _reliability(found: Evaluation) -> str:
    lines = [Series("", [0, 1], [0, 1], 5, faint=True)]
    for i, row in enumerate(found.rows):
        enough = row.reliability.count.numpy() >= 10
        lines.append(
            Series(
                row.name,
                row.reliability.confidence.numpy()[enough],
                row.reliability.accuracy.numpy()[enough],
                i,
            )
        )
    risks = []
    for i, row in enumerate(found.rows):
        curve = risk_coverage(row.probabilities, found.labels)
        risks.append(Series(row.name, curve.coverage.numpy(), 100 * curve.risk.numpy(), i))
    return _charts(
        (
            chart(lines, x_label="confidence", y_label="accuracy", title="Reliability"),
            "Reliability, bins of at least ten images; on the diagonal, confidence is accuracy.",
        ),
        (
            chart(
                risks,
                x_label="fraction of images kept",
                y_label="wrong, %",
                title="Risk and coverage",
            ),
            "Selective prediction: how many are wrong of those kept.",
        ),
    )


def _burn_in(findings: Findings) -> str:
    found = findings.burn_in
    head = "<h2>Burn-in</h2>"
    if found is None:
        return head + _note(f"At least {FEWEST} iterates have to be held to tell where it ends.")
    said = (
        f"The iterates have settled from number {found.start:,} on."
        if found.start is not None
        else f"The iterates have not settled: {found.why}."
    )
    verdict = {True: ("yes", "good"), False: ("no", "bad"), None: ("left out", "")}
    rows: list[Sequence[str | tuple[str, str]]] = [
        (c.name, "" if c.holds is None else f"{c.value:.3g}", c.wanted, verdict[c.holds])
        for c in found.checks
    ]
    numbers = np.array(found.iterates)
    marks = [] if found.start is None else [(float(found.start), "suggested")]
    energy = Series("", numbers[: len(found.energy)], found.energy)
    distance = Series("", numbers[1:], found.squared_distance[1:])
    shown = found.projections[:, :4] / (np.abs(found.projections[:, :4]).max(axis=0) + 1e-300)
    projections = [Series("", numbers, shown[:, i], i) for i in range(4)]
    return (
        head
        + f"<p>{escape(said)}</p>"
        + _table(("test of the iterates from there on", "value", "wanted", "holds"), rows)
        + _charts(
            (
                chart(
                    [energy],
                    x_label="iterate",
                    y_label="energy",
                    title="Energy",
                    logarithmic=True,
                    marks=marks,
                ),
                "Energy of the projections; 1 once the iterates have settled.",
            ),
            (
                chart(
                    [distance],
                    x_label="iterate",
                    y_label="squared distance",
                    title="Distance",
                    marks=marks,
                ),
                "Squared distance from the first iterate held.",
            ),
            (
                chart(
                    projections,
                    x_label="iterate",
                    y_label="projection, scaled",
                    title="Projections",
                    marks=marks,
                ),
                "Four of 64 seeded projections.",
            ),
        )
    )


def _trajectory(findings: Findings, found: Spectrum) -> str:
    numbers = np.array(findings.iterates)
    scores = found.scores.numpy()
    thirds = [
        Series(
            f"iterates {numbers[part[0]]:,} to {numbers[part[-1]]:,}",
            scores[part, 0],
            scores[part, 1],
            i,
            points=True,
        )
        for i, part in enumerate(_thirds(len(numbers)))
    ]
    values = found.singular_values.numpy()
    values = values[values > values[0] * 1e-5]
    share = np.square(values).cumsum() / np.square(values).sum()
    within = ", ".join(
        f"{100 * share[min(k, len(share)) - 1]:.0f} % in {k}"
        for k in (1, 2, 5, 10, 20)
        if k <= len(share)
    )
    return "<h2>Trajectory</h2>" + _charts(
        (
            chart(
                thirds, x_label="first component", y_label="second component", title="Trajectory"
            ),
            f"{len(numbers):,} iterates in their first two principal components.",
        ),
        (
            chart(
                [Series("", np.arange(1, len(values) + 1), values)],
                x_label="direction",
                y_label="standard deviation",
                title="Singular spectrum",
                logarithmic=True,
            ),
            f"Standard deviation along each direction. Variance: {within}.",
        ),
    )


def _cost(found: Evaluation) -> str:
    run = found.run
    steps = np.arange(1, len(run.losses) + 1)
    train, collect = 1000 * run.seconds[:, 0], 1000 * run.seconds[:, 1]
    return "<h2>Training</h2>" + _charts(
        (
            chart(
                [Series("", steps, run.losses)],
                x_label="minibatch",
                y_label="loss, nats",
                title="Loss",
                logarithmic=True,
            ),
            "Loss of each minibatch.",
        ),
        (
            chart(
                [
                    Series("training", steps, train, 0, points=True, faint=True),
                    Series("held up by collection", steps, collect, 1, points=True, faint=True),
                ],
                x_label="minibatch",
                y_label="ms",
                title="Cost of each step",
                logarithmic=True,
            ),
            f"A minibatch: median {_median(train)} ms, {_median(collect)} ms for collection.",
        ),
    )


def _thirds(count: int) -> list[NDArray[np.int64]]:
    return [part for part in np.array_split(np.arange(count), 3) if len(part)]


def _median(values: NDArray[np.float64]) -> str:
    known = values[np.isfinite(values)]
    return f"{np.median(known):.3g}" if len(known) else "no"


def _note(words: str) -> str:
    return f"<p class=note>{escape(words)}</p>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]]) -> str:
    """A table; a cell is its text, or text and class."""

    def cell(value: str | tuple[str, str]) -> str:
        text, kind = value if isinstance(value, tuple) else (value, "")
        return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"

    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<div class=wide><table>{f'<tr>{head}</tr>' if head else ''}{body}</table></div>"


def _charts(*charts: tuple[str, str]) -> str:
    figures = "".join(
        f"<figure>{drawn}<figcaption>{escape(words)}</figcaption></figure>"
        for drawn, words in charts
    )
    return f"<div class=charts>{figures}</div>"
