"""`swag diagnose` and `swag report` of a store that no `swag train` has made."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import swag
from benchmarks.burn_in import Quadratic
from swag.app import runs
from swag.app.evaluation import evaluate
from swag.app.html import find, page
from swag.app.recipe import Recipe
from swag.app.svg import Series, chart
from swag.cli import app
from tests.swag.test_burn_in import collected

VOID = {"meta", "line", "circle", "polyline", "br", "img", "input"}


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order; notes what is asked of elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.elsewhere += [name for name, _ in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert not parser.elsewhere
    assert not re.search(r"https?:|url\(|@import", text)
    assert "nan" not in text.lower().replace("nanmean", "")
    return parser


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"memmap:{tmp_path_factory.mktemp('diagnosed') / 'a<b'}"
    with collected(Quadratic(axes=50, rate=0.8, smallest=0.6).run(130, 2), store=url):
        pass
    return url


def test_diagnose(store: str, tmp_path: Path) -> None:
    with swag.load(store) as posterior:
        found = posterior.suggest_burn_in()
    done = CliRunner().invoke(app, ["diagnose", store, "--json"])
    said = json.loads(done.stdout)
    assert said["start"] == found.start is not None
    assert [check["name"] for check in said["checks"]] == [c.name for c in found.checks]
    done = CliRunner().invoke(app, ["diagnose", store, "--figure", str(tmp_path / "a.png")])
    assert done.exit_code == 0
    assert "split R-hat" in done.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_diagnose_says_what_is_missing(tmp_path: Path) -> None:
    url = f"memmap:{tmp_path / 'few'}"
    with collected(Quadratic(axes=3).run(9, 0), store=url):
        pass
    done = CliRunner().invoke(app, ["diagnose", url])
    assert done.exit_code == 1
    assert "fewer than 80" in done.stderr
    assert (
        CliRunner().invoke(app, ["report", url, "--output", str(tmp_path / "r.html")]).exit_code
        == 0
    )
    assert "At least 80 iterates" in (tmp_path / "r.html").read_text()


def test_the_report_needs_nothing_else(store: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", store, "--output", str(tmp_path / "new" / "r.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "new" / "r.html").read_text(encoding="utf-8")
    parsed = checked(text)
    assert parsed.seen.count("svg") == 5
    assert "a&lt;b" in text  # the name of the store is text, not markup
    assert "prefers-color-scheme:dark" in text


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    drawn = chart(
        [Series("<loss>", [0, 1, 2, 3], [1.0, np.nan, 0.0, 100.0])],
        x_label="t", y_label="y", title="a & b", logarithmic=True,
    )  # fmt: skip
    checked(drawn)
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    assert len(points.split()) == 2
    assert "&lt;loss&gt;" in drawn
    assert "nothing to draw" in chart(
        [Series("", [0.0], [np.nan])], x_label="", y_label="", title="t"
    )


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 1e-9], [-1e6, 1e6], [1.0, 1.0 + 1e-12]])
def test_any_range_has_ticks_within_it(values: list[float]) -> None:
    drawn = chart([Series("", [0, 1], values)], x_label="", y_label="", title="")
    heights = [float(y) for y in re.findall(r'class="grid"[^>]* y1="([\d.]+)" y2="\1"', drawn)]
    assert heights
    assert all(0 <= y <= 280 for y in heights)


def test_the_spectrum_gives_the_iterates_back() -> None:
    from swag.subspace import spectrum

    iterates = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)
    with collected(iterates.numpy()) as posterior:
        found = spectrum(posterior.window(center="mean")._gaussian())
    off = iterates.double() - iterates.double().mean(dim=0)
    scores = found.scores
    torch.testing.assert_close(scores @ scores.T, off @ off.T, rtol=1e-4, atol=1e-3)


def test_what_is_out_of_distribution_has_rows_of_its_own(tmp_path: Path) -> None:
    url = f"memmap:{tmp_path / 'trained'}"
    recipe = Recipe.of(model="2conv2fc", epochs=2, images=300, batch_size=50)
    runs.train(url, recipe)
    found = evaluate(url, images=40, samples=2, outside=30)
    without = evaluate(url, images=40, samples=2)
    for one, other in zip(found.rows, without.rows, strict=True):
        assert {name: p.shape for name, p in one.outside.items()} == {
            "rotated": (30, 10), "noise": (30, 10)
        }  # fmt: skip
        torch.testing.assert_close(one.probabilities, other.probabilities)
        assert other.outside == {}
    with swag.load(url) as posterior:
        statistics = posterior._store.statistics
        assert statistics is not None
        recorded = statistics.of(range(posterior.n_averaged)).loss
        text = page(find(posterior, found))
    losses = runs.read(url).losses
    assert recorded is not None
    np.testing.assert_array_equal(recorded, losses[-len(recorded) :])
    checked(text)
    assert "<th>rotated, AUROC</th><th>rotated, FPR95 %</th><th>noise, AUROC</th>" in text
    assert text.count("<h2>Out of distribution</h2>") == 1
