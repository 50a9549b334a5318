"""`jaxq report`: the report of a run, study, sweep or sizing, from its summary alone; damage is named."""

from __future__ import annotations

import hashlib
import json
from html import unescape
from pathlib import Path

import pytest

from jaxq._experiments import SUMMARY_FILE, experiment
from jaxq._report import RUN_FILE
from jaxq._sizing_report import SIZE_FILE
from jaxq._stored_summary import DIGEST
from jaxq._sweep_report import SWEEP_FILE

from .summaries import study_summary, written_run, written_sizing, written_study, written_sweep

KINDS = {
    "run": (RUN_FILE, written_run),
    "study": (SUMMARY_FILE, written_study),
    "sweep": (SWEEP_FILE, written_sweep),
    "sizing": (SIZE_FILE, written_sizing),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The folders of a run, a study, a sweep and a sizing."""
    folders = {}
    for name, (_, write) in KINDS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        write(folders[name])
    return folders


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_is_made_again_from_the_summary_alone(reports, kind, tmp_path, jaxq):
    before, (summary_file, _) = contents(reports[kind]), KINDS[kind]
    (tmp_path / summary_file).write_bytes((reports[kind] / summary_file).read_bytes())
    code, out, err = jaxq("report", tmp_path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"report": str(tmp_path / "report.html")}
    after = contents(tmp_path)
    # A netCDF file holds when it was made.
    assert {path for path in before if before[path] != after[path]} <= {Path("sweep.nc")}
    assert len(before) == {"run": 2 + 2 * 5, "study": 2 + 2 * 2, "sweep": 2 + 2 * 2, "sizing": 2 + 2}[kind]


def test_a_study_says_what_was_asked_found_and_how_to_repeat_it(reports):
    page = unescape((reports["study"] / "report.html").read_text())
    summary, study = study_summary(), experiment("asymptotics")
    assert f'<p class="lead">{study.answer(summary)}</p>' in page
    assert page.count("<svg ") == 2 and all(caption in page for caption in study.captions.values())
    assert all(f">{cell}<" in page for row in study.table(summary)[1] for cell in row if cell)
    for expected in (
        "serves up to 16 requests at once",
        "quick version of the study",
        "every GPU while that is affordable",
        "(10, 128), (30, 64)",
        "jaxq experiment asymptotics --quick --seed 0 --out jaxq-experiments/asymptotics",
        f"jax {summary['environment']['versions']['jax']}",
        summary["instance"]["fingerprint"],
        "Took 321 s",
        "arXiv:2602.02987",
    ):
        assert expected in page, expected
    assert "http" not in page.replace("http://www.w3.org/", "") and "<script" not in page


def test_a_sweep_and_a_sizing_say_what_was_asked_found_and_how_to_repeat_it(reports):
    told = {
        "sweep": (
            "gate_and_route at n = 50: 4.33 ± 0.09 % in the mean over 27 points, 0.00 to 8.67 % at single",
            "<td>classes.0.arrival_rate</td><td>0.3</td><td>0.7</td><td>9</td>",
            "32 replications of 400 simulated seconds",
            "<td>4.33</td><td>8.67</td>",
            "jaxq sweep cluster.toml --set hardware.batch_size=8,16,32",
        ),
        "sizing": (
            '<p class="lead">53 GPUs serve the load, and 52 do not',
            '<p class="note">56 GPUs did worse than 53.',
            "at least 98 % of its value under price_and_pack",
            "<td>98.100 ± 1.962</td><td>99.900</td><td>128</td>",
            "jaxq size cluster.toml --load 25,25 --target revenue=0.98 --out sizes",
        ),
    }
    for kind, lines in told.items():
        page = unescape((reports[kind] / "report.html").read_text())
        assert page.count("<svg ") == 1 and "serves up to 16 requests at once" in page
        for expected in (*lines, "Took 321 s", "arXiv:2602.02987"):
            assert expected in page, expected


def without_records(text):
    summary = json.loads(text)
    del summary["records"]
    return json.dumps(summary)


def of_another_study(text):
    """As a version of jaxq with one more study would write it."""
    summary = json.loads(text) | {"experiment": "fig99"}
    del summary[DIGEST]
    content = json.dumps(summary, sort_keys=True, separators=(",", ":"))
    return json.dumps(summary | {DIGEST: hashlib.sha256(content.encode()).hexdigest()})


@pytest.mark.parametrize(
    ("kind", "damage", "expected"),
    [
        ("run", lambda text: text[: len(text) // 2], "run.json: damaged, not JSON"),
        ("run", lambda text: "[]", "run.json: expected an object"),
        ("run", without_records, "run.json: field records is missing"),
        ("run", lambda text: text.replace('"seed": 0', '"seed": 1'), "run.json: damaged or changed"),
        ("run", lambda text: text.replace('"gpus": 50,', '"gpus": 51,', 1), "run.json: damaged or changed"),
        ("study", lambda text: "", "experiment.json: damaged, not JSON"),
        ("study", lambda text: text.replace('"gaps"', '"gabs"'), "experiment.json: damaged or changed"),
        ("study", of_another_study, "expected one of asymptotics"),
        ("sweep", lambda text: text[:-30], "sweep.json: damaged, not JSON"),
        ("sizing", lambda text: text.replace("53 GPUs", "54 GPUs"), "size.json: damaged or changed"),
    ],
)
def test_damage_is_named_and_nothing_is_written(reports, kind, damage, expected, tmp_path, jaxq):
    file, _ = KINDS[kind]
    damaged = damage((reports[kind] / file).read_text())
    (tmp_path / file).write_text(damaged)
    code, out, err = jaxq("report", tmp_path)
    assert (code, out) == (2, "") and err.count("\n") == 1 and expected in err, err
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_folder_without_a_summary_is_refused(tmp_path, jaxq):
    for folder, expected in (
        (tmp_path / "none", "no such folder"),
        (tmp_path, "holds no experiment.json, run.json, sweep.json or size.json"),
    ):
        code, out, err = jaxq("report", folder, "--json")
        assert (code, out) == (2, "") and err.count("\n") == 1 and expected in err, err


def test_a_finished_run_is_not_listed_as_a_kept_one(jaxq, workplace):
    """It has a run.json too, of another form."""
    for name in ("run.json", "report.html"):
        (workplace / "first").mkdir(exist_ok=True)
        (workplace / "first" / name).write_text("{}")
    code, out, err = jaxq("ls", "first")
    assert (code, out) == (2, "") and "is of jaxq run, which has finished" in err and err.count("\n") == 1
