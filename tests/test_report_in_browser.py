"""The reports as a browser shows them: figures drawn and legible, nothing overflows, nothing is fetched."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from jaxq._experiments import experiment
from jaxq._figures import draw_figures, svg_texts
from jaxq._report import report_html
from jaxq._sizing_figure import sizing_figure
from jaxq._sizing_report import sizing_html
from jaxq._study_report import study_html
from jaxq._sweep_figures import sweep_figures
from jaxq._sweep_report import sweep_html

from .summaries import run_summary, sizing_summary, study_summary, sweep_summary

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]

OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MEASURE = """() => {
  const page = document.documentElement;
  const size = (element) => parseFloat(getComputedStyle(element).fontSize);
  const texts = document.querySelectorAll("p, li, td, th, figcaption, h1, h2, summary, code");
  const shown = [...texts].filter((text) => text.offsetHeight);
  return {
    overflow: page.scrollWidth - page.clientWidth,
    least: Math.min(...shown.map(size)),
    body: size(document.body),
    figures: [...document.querySelectorAll("svg")].map((svg) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const texts = [...svg.querySelectorAll("text, tspan")];
      const marks = [...svg.querySelectorAll("path, use, image")];
      const drawn = marks.filter((mark) => mark.getBoundingClientRect().width > 0);
      return {
        width: box.width, height: box.height, marks: drawn.length, texts: texts.length,
        least: Math.min(...texts.map((text) => scale * size(text))),
      };
    }),
  };
}"""


def run_page() -> str:
    summary = run_summary()
    return report_html(summary, svg_texts(draw_figures(summary)))


def study_page() -> str:
    study, summary = experiment("asymptotics"), study_summary()
    return study_html(study, summary, svg_texts(study.figures(summary)))


def sweep_page() -> str:
    summary = sweep_summary()
    return sweep_html(summary, svg_texts(sweep_figures(summary)))


def sizing_page() -> str:
    summary = sizing_summary()
    (svg,) = svg_texts({"sizing": sizing_figure(summary)}).values()
    return sizing_html(summary, svg)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The file of each report, and how many figures it has."""
    folder = tmp_path_factory.mktemp("pages")
    files = {}
    made = (
        ("run", run_page(), 5),
        ("study", study_page(), 2),
        ("sweep", sweep_page(), 1),
        ("sizing", sizing_page(), 1),
    )
    for name, html, figures in made:
        files[name] = (folder / f"{name}.html", figures)
        files[name][0].write_text(html, encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["run", "study", "sweep", "sizing"])
def test_a_report_is_legible_and_stands_alone(pages, browser, name, width):
    file, figures = pages[name]
    page = browser.new_page(viewport={"width": width, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
    found = page.evaluate(MEASURE)
    page.close()
    assert said == [] and asked == [file.as_uri()]
    assert found["overflow"] == 0
    assert found["body"] >= 16 and found["least"] >= 14
    assert len(found["figures"]) == figures
    for figure in found["figures"]:
        assert min(width - 40, 500) <= figure["width"] <= width - 32 and figure["height"] > 100, figure
        assert figure["marks"] > 20 and figure["texts"] > 10 and figure["least"] >= 7, figure


def test_a_wide_figure_is_scrolled_and_not_shrunk(browser, tmp_path):
    """The figure of a study that was drawn 12 inches wide."""
    from matplotlib.figure import Figure

    from jaxq import _report_page

    figure = Figure(figsize=(12, 3))
    figure.subplots().set_title("wide")
    svg = svg_texts({"wide": figure})["wide"]
    (tmp_path / "page.html").write_text(_report_page.page("wide", [_report_page.figure(svg, "wide", "")]))
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    found = page.evaluate(MEASURE)
    page.close()
    assert found["overflow"] == 0 and found["figures"][0]["least"] >= 7
    assert found["figures"][0]["width"] > 390
