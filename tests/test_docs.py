"""The documentation: complete, built strictly, without network; its examples and its notebook run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxq
from jaxq import policies

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "first_policy.ipynb"
NAMES = sorted(
    {f"jaxq.{name}" for name in jaxq.__all__ if name != "policies"}
    | {f"jaxq.policies.{name}" for name in policies.__all__}
)


def needs(*packages):
    """Skips without these packages, which come with `jaxq[docs]`."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"without {', '.join(missing)} of jaxq[docs]")


def blocks(page, language):
    """The code of a page in a language, block by block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_public_name_is_in_the_reference_once():
    found = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(found) == NAMES


def test_links_between_files_lead_somewhere():
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_examples_of_the_pages_run(tmp_path, monkeypatch):
    (toml,) = blocks("index.md", "toml")
    (tmp_path / "cluster.toml").write_text(toml)
    instance = jaxq.load_instance(tmp_path / "cluster.toml")
    (tmp_path / "policies_of_the_page.py").write_text("\n".join(blocks("policies.md", "python")))
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("policies_of_the_page")
    policy = policies.Policy(mine.PatientGate(), mine.ShortAnswersBesidePrefills(), name="both")
    assert policies.load_policy("policies_of_the_page:patient", instance).name == "patient"
    result = jaxq.simulate(instance, policy, n_gpus=3, horizon=40.0, warmup=20.0, replications=4, key=0)
    # The gate starts nothing while a fifth of the GPUs run a prefill: one of three at most.
    assert 0 < float(result.prefill_utilisation.mean) <= 1 / 3


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built so that any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@needs("mkdocs", "material", "mkdocstrings_handlers")
def test_the_reference_shows_signatures_and_docstrings(site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    parts = re.split(r'<h[23] id="(jaxq\.[\w.]+)"', pages)
    shown = {name: re.sub(r"<[^>]+>", "", text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    assert set(NAMES) <= set(shown)
    for name in NAMES:
        assert len(shown[name].split()) > 12, name
    assert "dt: float | None = None" in shown["jaxq.Leap"]
    assert "chosen by the engine" in shown["jaxq.Leap"]
    engine = " ".join(shown["jaxq.ClusterEngine"].split("Simulates")[0].split())
    assert "stepper: AbstractStepper = Exact()" in engine and "block: int | None = None" in engine
    assert "chain" not in engine and "is_fluid" not in engine


@needs("mkdocs", "material", "mkdocstrings_handlers")
def test_the_site_fetches_nothing(site):
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//[^>]*>'
    )
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(.?https?:|@import", sheet.read_text(encoding="utf-8")), sheet


@needs("mkdocs", "material", "mkdocstrings_handlers")
def test_links_to_files_of_the_repository_have_pages(site):
    tuning = (site / "tuning.html").read_text(encoding="utf-8")
    assert 'href="repository/jaxq/_policy/feedback.py.html"' in tuning
    shown = (site / "repository" / "jaxq" / "_policy" / "feedback.py.html").read_text(encoding="utf-8")
    assert "FeedbackGate" in shown


def test_the_notebook_is_kept_without_outputs():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.count('"outputs": []') == text.count('"cell_type": "code"') > 5


@pytest.mark.slow
@needs("nbclient", "ipykernel")
def test_the_notebook_runs_and_tuning_narrows_the_gap(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    before, after = re.search(r"gap: ([\d.]+) % before, ([\d.]+) % after", said).groups()
    assert float(after) < 0.2 * float(before)
    assert any("image/png" in output.get("data", {}) for output in outputs)
