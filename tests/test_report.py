"""The main job: what its report says against the files beside it, and that it stands alone."""

import csv
import json
import re
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import equinox as eqx
import numpy as np
import pytest
import xarray

from jaxq import OccupancyLimit, ServiceLevels, Workload, load_instance, solve_plan
from jaxq import _main_job as main_job
from jaxq._figures import draw_figures, svg_texts
from jaxq._main_job import Effort, Size, run_main_job, write_main_job
from jaxq._progress import progress_bars
from jaxq._report import PLAIN_WORDS, report_html
from jaxq.cli import run_command
from jaxq.policies import PRESETS, feedback

REFERENCE = Path(__file__).parents[1] / "experiments" / "instances" / "a100_qwen8b_two_class.toml"
ODD = '<b>long & "odd" $x$</b>'
TINY = Effort("tiny", (Size(3, 4), Size(5, 4)), horizon=60.0, warmup=20.0, path_horizon=30.0, path_windows=10)
POLICIES = ("gate_and_route", "sarathi")
SHOWN = (*POLICIES, "tuned")
SHAPES = ("area", "br", "col", "hr", "img", "input", "link", "meta")


@pytest.fixture(scope="module")
def job():
    """The main job at its smallest, with a class whose name needs escaping everywhere."""
    instance = load_instance(REFERENCE)
    w = instance.workload
    odd = Workload(w.prompt_tokens, w.output_tokens, w.arrival_rate, w.patience_rate, (ODD, "_short"))
    instance = eqx.tree_at(lambda i: i.workload, instance, odd)
    tuned = feedback(instance, start="price_and_pack", sharpness=3.0)
    with progress_bars(6) as bars:
        return run_main_job(
            instance, TINY, bars, policies=POLICIES, tuned=tuned, seed=3, command="jaxq run <again>"
        )


@pytest.fixture(scope="module")
def folder(job, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_main_job(job, path)
    return path


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text()


class Checker(HTMLParser):
    """Collects the text, and refuses tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in SHAPES:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_every_file_is_there(folder):
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    figures = ("gap", "learned", "occupancies", "revenue", "sample_path")
    expected = ["instance.toml", "report.html", "results.csv", "run.json"]
    expected += [f"figures/{name}.{kind}" for name in figures for kind in ("svg", "png")]
    expected += [f"results/{name}_n{n}.nc" for name in SHOWN for n in (3, 5)]
    assert names == sorted(expected)
    assert all((folder / name).stat().st_size > 100 for name in names)


def test_the_summary_agrees_with_the_counts(folder):
    summary = json.loads((folder / "run.json").read_text())
    values = np.array([0.1 * 300 + 0.2 * 1000, 0.1 * 3000 + 0.2 * 400])
    earned = {}
    for record in summary["records"]:
        data = xarray.load_dataset(folder / "results" / f"{record['policy']}_n{record['gpus']}.nc")
        measured = (data.window_end > 20 + 1e-6).values
        completed = data.window_completions[measured].sum("window").values
        earned[record["policy"], record["gpus"]] = values @ completed / (record["gpus"] * 40.0)
    assert len(earned) == 6
    for record in summary["records"]:
        mean = earned[record["policy"], record["gpus"]].mean()
        assert record["revenue_bundled"]["mean"] == pytest.approx(mean)
    for comparison in summary["comparisons"]:
        assert comparison["baseline"] == "sarathi"
        n = comparison["gpus"]
        difference = (earned["gate_and_route", n] - earned["sarathi", n]).mean()
        found = comparison["differences"]["gate_and_route"]["revenue_bundled"]["mean"]
        assert found == pytest.approx(difference)


def test_the_report_says_what_is_kept_of_service_levels(job, html):
    queue = OccupancyLimit("queue", {"prefill_queue": 1.0}, 0.7)
    instance = replace(job.instance, service_levels=ServiceLevels(prefill_fairness=0.17, limits=[queue]))
    plan = solve_plan(instance)
    records = [replace(result, instance=instance).to_dict(plan) for result in job.results.values()]
    changed = {**job.summary, "records": records}
    text = " ".join(Checker(report_html(changed, defaultdict(lambda: "<svg></svg>"))).text)
    heading = "What the policies keep of the service levels"
    assert heading in text and heading not in html
    kept = records[1]["service_levels"]["queue"]["measured"]
    low, high = kept["ci95"]
    shown = f"{kept['mean']:.5g} ({low:.5g} to {high:.5g})".replace("-", "\u2212")
    assert shown in text and f"{float(plan.indicators['queue']):.5g}" in text


def test_the_table_of_results_has_every_estimate(folder):
    summary = json.loads((folder / "run.json").read_text())
    with (folder / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    keys = [(row["policy"], row["gpus"], row["quantity"], row["class"]) for row in rows]
    assert len(set(keys)) == len(keys)
    by_key = dict(zip(keys, rows, strict=True))
    for record in summary["records"]:
        where = (record["policy"], str(record["gpus"]))
        assert float(by_key[*where, "revenue_bundled", ""]["mean"]) == record["revenue_bundled"]["mean"]
        assert float(by_key[*where, "gap", ""]["high"]) == record["gap"]["ci95"][1]
        row = by_key[*where, "decodes_solo", "_short"]
        assert float(row["standard_error"]) == record["decodes_solo"]["standard_error"][1]


def test_the_page_is_well_formed_and_stands_alone(html):
    page = Checker(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "image", "object"}
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("href", "xlink:href", "src", "action"):
                assert value.startswith("#"), (name, value)
            assert "url(" not in (value or "") or "url(#" in value
    assert "@import" not in html
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)


def test_the_page_says_what_the_tuned_policy_learned(job, html):
    text = "".join(Checker(html).text)
    portrait = job.summary["portrait"]
    assert "What the tuned policy learned" in text
    assert f"nothing in {100 * portrait['at_plan'][-1]:.0f} %" in text
    without = dict(job.summary, portrait=None)
    assert "learned" not in draw_figures(without)
    assert "learned" not in report_html(without, svg_texts(draw_figures(without)))


def test_the_page_escapes_what_a_user_named(html):
    assert "<b>long" not in html and "<again>" not in html
    text = "".join(Checker(html).text)
    assert ODD in text and "jaxq run <again>" in text


def test_the_page_answers_in_a_sentence(job, html):
    records = [record for record in job.summary["records"] if record["gpus"] == 5]
    best = max(records, key=lambda record: record["revenue_bundled"]["mean"])
    revenue, gap = best["revenue_bundled"], best["gap"]
    low, high = revenue["ci95"]
    text = " ".join("".join(Checker(html).text).split())
    assert f"On 5 GPUs the best of the 3 policies measured is {best['policy']}" in text
    assert f"{revenue['mean']:.2f} ({low:.2f} to {high:.2f}) per GPU and second (95 % interval)" in text
    assert f"{100 * gap['mean']:.2f} % (" in text and "the best possible 297.72" in text


def test_the_page_says_what_was_asked_and_how_to_repeat_it(job, html):
    text = " ".join("".join(Checker(html).text).split())
    for expected in (
        "serves up to 16 requests at once",
        "22 ms",
        "33.27 ms",
        "3 GPUs (4 times), 5 GPUs (4 times)",
        "10 s on average",
        "Seed 3",
        job.summary["instance"]["fingerprint"],
        f"jax {job.summary['environment']['versions']['jax']}",
        "drawing the class in proportion",
        "arXiv:2602.02987",
        "21.3 % of the GPUs",
        "264.4544",
    ):
        assert expected in text, expected
    assert all(PLAIN_WORDS[name] in text for name in SHOWN)


def test_every_preset_is_explained_in_plain_words():
    assert set(PLAIN_WORDS) == {*PRESETS, "tuned"}


def test_cautions_are_at_the_top(job):
    summary = json.loads(json.dumps(job.summary))
    summary["records"][0]["cautions"] = ["warm-up too short by <much>"]
    summary["records"][1]["gap"] = {"mean": -0.02, "standard_error": 0.001, "ci95": [-0.023, -0.017]}
    figures = dict.fromkeys(("gap", "revenue", "occupancies", "sample_path", "learned"), "<svg ></svg>")
    text = "".join(Checker(report_html(summary, figures)).text)
    top = text[: text.index("What was asked")]
    assert "warm-up too short by <much>" in top and "more than is possible in the long run" in top


def test_a_single_replication_has_no_interval_and_no_verdict(job):
    summary = json.loads(json.dumps(job.summary))
    for record in summary["records"]:
        record["gap"]["ci95"] = record["revenue_bundled"]["ci95"] = [None, None]
    for comparison in summary["comparisons"]:
        for row in comparison["differences"].values():
            row["revenue_bundled"] |= {"ci95": [None, None], "correlation": None}
    page = report_html(summary, svg_texts(draw_figures(summary)))
    assert "(– to –)" in page and "nan" not in page.lower().replace("finan", "")


def test_figures_show_the_numbers(job):
    figures = draw_figures(job.summary)
    (axes,) = figures["gap"].axes
    for container, name in zip(axes.containers, SHOWN, strict=True):
        line, _, (bars,) = container.lines
        gaps = [record["gap"] for record in job.summary["records"] if record["policy"] == name]
        assert list(line.get_xdata()) == [3, 5]
        np.testing.assert_allclose(line.get_ydata(orig=False), [100 * gap["mean"] for gap in gaps])
        ends = [segment[:, 1] for segment in bars.get_segments()]
        np.testing.assert_allclose(ends, [100 * np.array(gap["ci95"]) for gap in gaps])
    occupied = figures["occupancies"].axes
    assert len(occupied) == 5
    planned = [line.get_xdata()[0] for line in occupied[0].lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(planned, [0.018261, 0.194953], atol=1e-6)
    path = job.summary["sample_paths"][0]
    drawn = figures["sample_path"].axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, np.add(path["decodes_mixed"], path["decodes_solo"])[0])


def test_the_sample_path_covers_its_time_within_the_slots(job):
    for path in job.summary["sample_paths"]:
        assert len(path["window_end"]) == 10 and path["window_end"][-1] == pytest.approx(30.0)
        assert np.shape(path["decodes_mixed"]) == (2, 10)
        busy = np.add(path["decodes_mixed"], path["decodes_solo"]).sum(axis=0) + np.sum(
            path["prefills"], axis=0
        )
        assert 0 < busy.max() <= 16 and np.sum(path["prefills"], axis=0).max() <= 1


def test_figures_are_the_same_each_time_and_legible_as_svg(job):
    first, second = (svg_texts(draw_figures(job.summary)) for _ in range(2))
    assert first == second
    for text in first.values():
        root = ElementTree.fromstring(text)
        width = float(root.get("width").removesuffix("pt"))
        assert width == pytest.approx(5.2 * 72)
        words = "".join(root.itertext())
        assert "GPU" in words or "gate_and_route" in words
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)]
        # Shown 358 units wide on a telephone, no text is below 8.5 pixels.
        assert sizes and min(sizes) * 358 / width >= 8.5


def test_the_command_writes_a_report_and_replaces_an_earlier_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = Effort("tiny", (Size(3, 4),), 60.0, 20.0, path_size=0, path_horizon=30.0, path_windows=10)
    monkeypatch.setattr(main_job, "QUICK", tiny)
    monkeypatch.setattr(main_job, "DEFAULT_POLICIES", POLICIES)
    for seed in (1, 2):
        assert run_command(["run", "--quick", "--out", "out/report", "--seed", str(seed), "--json"]) == 0
        captured = capsys.readouterr()
        summary = json.loads(captured.out)
        assert summary["report"] == "out/report/report.html" and Path(summary["report"]).is_file()
        assert json.loads(Path("out/report/run.json").read_text())["seed"] == seed
        assert summary["command"] == f"jaxq run --quick --seed {seed} --out out/report"
        assert "[2/3] sarathi, n = 3: gap" in captured.err
        # The tuned policy that ships for the reference instance.
        assert "[3/3] tuned, n = 3: gap" in captured.err and "What the tuned policy learned" in (
            Path("out/report/report.html").read_text()
        )
    assert [path.name for path in Path("out").iterdir()] == ["report"]
