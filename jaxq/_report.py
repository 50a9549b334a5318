"""The report of the main job: one page without network, for a planner who does not know the code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _report_page as page
from ._figures import draw_figures, save_figures
from ._report_sections import Summary, cluster_and_requests, how_to_repeat, source
from ._summary import RUN_FACTS

RUN_FILE = "run.json"
"""The file that every output of the main job holds: the summary."""

FIELDS = (
    *RUN_FACTS, "effort", "plan", "policies", "records", "baseline", "comparisons", "sample_paths",
    "portrait",
)  # fmt: skip
"""What the report is made of."""

PLAIN_WORDS = {
    "gate_and_route": "A fixed share of the GPUs reads prompts, always for the class that is furthest behind "
    "the plan; answers are written on the other GPUs first.",
    "prioritize_and_route": "As gate_and_route, in a fixed order of classes: long answers to short prompts.",
    "sli_gate_and_route": "As gate_and_route, but answers are dealt out at random in the plan's proportions.",
    "sarathi": "How serving systems run today: any GPU, first come, first served, and each answer is written "
    "where its prompt was read.",
    "gate_immediate": "As sarathi, but the next prompt is chosen by the plan instead of by its turn.",
    "gate_fcfs": "Prompts come first everywhere; answers go to GPUs that read no prompt.",
    "fcfs_route": "As gate_and_route, but prompts are read in turn, whatever the plan says.",
    "price_and_pack": "Prompts are chosen by what one more request of the class is worth; answers are packed "
    "beside prompts that are being read. Needs no fixed share.",
    "tuned": "Found by gradient on the simulator (jaxq tune), for this cluster and workload.",
}
"""What each policy does, for someone who schedules a cluster."""


def write_report(summary: Summary, folder: Path) -> Path:
    """Draw the figures of a stored summary and write the report beside it; returns where it is."""
    (folder / "figures").mkdir(exist_ok=True)
    figures = save_figures(draw_figures(summary), folder / "figures")
    return page.write_page(report_html(summary, figures), folder)


def report_html(summary: Summary, figures: Mapping[str, str]) -> str:
    """The report.

    **Arguments:** `summary`: as in run.json; `figures`: SVG elements by name (`gap`, `revenue`,
    `occupancies`, `sample_path`; `learned` where a tuned policy is shown).
    """
    name = summary["instance"]["name"]
    sections = (
        *_answer(summary),
        *_asked(summary),
        *_policies(summary, figures),
        *_learned(summary, figures),
        *_comparison(summary),
        *_service_levels(summary),
        *_plan(summary),
        *_occupancies(summary, figures),
        *_limits(summary),
        *_reproduce(summary),
    )
    return page.page(f"{name}: policies against the best possible revenue", sections)


def _answer(summary: Summary) -> list[str]:
    """The headline, and the answer in a sentence."""
    name, scheme = summary["instance"]["name"], summary["plan"]["scheme"]
    best, others = _ranked(summary)
    bound = best["bound"][scheme]
    text = (
        f"On {best['gpus']} GPUs the best of the {1 + len(others)} policies measured is {best['policy']}: "
        f"it earns {_interval(best[f'revenue_{scheme}'])} per GPU and second (95 % interval), "
        f"{_gap_words(best)} the best possible {bound:.2f}."
    )
    baseline = summary["baseline"]
    reference = next((record for record in others if record["policy"] == baseline), None)
    if reference is not None:
        text += (
            f" {baseline}, how serving systems run today, earns {_interval(reference[f'revenue_{scheme}'])}, "
            f"{_gap_words(reference)} it."
        )
    return [
        page.heading(f"How close does {name} come to its best possible revenue?", 1),
        page.paragraph(text, "lead"),
        *(page.paragraph(caution, "note") for caution in _cautions(summary)),
    ]


def _asked(summary: Summary) -> list[str]:
    """What was asked: the cluster, the requests, the prices, and what was simulated."""
    effort = summary["effort"]
    sizes = ", ".join(f"{size['n_gpus']} GPUs ({size['replications']} times)" for size in effort["sizes"])
    return [
        page.heading("What was asked"),
        *cluster_and_requests(summary["instance"]),
        page.paragraph(
            f"Simulated: {sizes}; each time {effort['horizon']:g} s from an empty cluster, of which the "
            f"first {effort['warmup']:g} s are discarded. Every policy met the same arrivals.",
            "quiet",
        ),
    ]


def _policies(summary: Summary, figures: Mapping[str, str]) -> list[str]:
    """Every policy's revenue and gap, drawn and as a table."""
    scheme = summary["plan"]["scheme"]
    best, others = _ranked(summary)
    rows = [
        (
            record["policy"],
            _interval(record[f"revenue_{scheme}"]),
            _percent(record["gap"]),
            f"{1000 * record['time_per_token_emitted']['mean']:.3g}",
            f"{100 * _lost(record):.2g} %",
        )
        for record in (best, *others)
    ]
    return [
        page.heading("How the policies do"),
        page.side_by_side(
            page.figure(
                figures["gap"],
                "Gap to the best possible revenue against the number of GPUs",
                "How far each policy stays below the best possible revenue, by the size of the cluster. "
                "Lower is better; 0 cannot be undercut in the long run.",
            ),
            page.figure(
                figures["revenue"],
                "Revenue of each policy",
                f"Revenue on {best['gpus']} GPUs. The dashed line is the best possible: no policy can earn "
                "more in the long run.",
            ),
        ),
        page.table(
            (
                "policy",
                f"{scheme} revenue per GPU and s",
                "below the best possible",
                "ms per token",
                "requests lost",
            ),
            rows,
            best=0,
        ),
        page.paragraph(
            f"On {best['gpus']} GPUs; in brackets the ends of the 95 % interval. Requests lost gave up "
            "waiting, before or after their prompt was read.",
            "quiet",
        ),
        page.definitions(
            (record["policy"], PLAIN_WORDS[record["policy"]])
            for record in (best, *others)
            if record["policy"] in PLAIN_WORDS
        ),
        _all_sizes(summary),
    ]


def _all_sizes(summary: Summary) -> str:
    """Gap of each policy at each size, and both revenues, folded away."""
    rows = [
        (
            record["policy"],
            str(record["gpus"]),
            str(record["replications"]),
            _interval(record["revenue_bundled"]),
            _interval(record["revenue_separate"]),
            _percent(record["gap_bundled"]),
            _percent(record["gap_separate"]),
        )
        for record in summary["records"]
    ]
    headings = (
        "policy",
        "GPUs",
        "replications",
        "bundled revenue",
        "separate revenue",
        "bundled gap",
        "separate gap",
    )
    return page.folded("All sizes, both ways of charging", page.table(headings, rows))


def _learned(summary: Summary, figures: Mapping[str, str]) -> list[str]:
    """What a tuned policy does, in words and one figure."""
    portrait = summary.get("portrait")
    if portrait is None:
        return []
    classes, at_plan = portrait["classes"], portrait["at_plan"]
    order = sorted(range(len(classes)), key=lambda i: -at_plan[i])
    starts = ", ".join(f"{classes[i]} in {_share(at_plan[i])}" for i in order)
    idle = portrait["idle"]["starts_none"]
    items = [
        f"Which prompt: with the planned queues it starts {starts} of its decisions, and nothing in "
        f"{_share(at_plan[-1])}.",
        f"When it waits: with few prompts being read, a free GPU is left without one in {_share(idle[0])} of "
        f"the cases though requests wait; with all others reading, in {_share(idle[-1])}.",
    ]
    for name, chances in zip(classes, portrait["routes"], strict=True):
        ways = sorted(zip(chances, portrait["pools"], strict=True), reverse=True)
        told = ", ".join(f"{pool} ({_share(chance)})" for chance, pool in ways if chance >= 0.005)
        items.append(f"Where answers of {name} are written, while there is room everywhere: {told}.")
    return [
        page.heading("What the tuned policy learned"),
        page.bullets(items),
        page.figure(
            figures["learned"],
            "The choices of the tuned policy",
            f"The tuned policy on {portrait['gpus']} GPUs, when everything but what is shown is as planned.",
        ),
    ]


def _share(chance: float) -> str:
    return f"{100 * chance:.0f} %"


def _comparison(summary: Summary) -> list[str]:
    """Paired differences from the baseline at the largest size."""
    if not summary["comparisons"]:
        return []
    comparison = max(summary["comparisons"], key=lambda row: row["gpus"])
    key, baseline = f"revenue_{summary['plan']['scheme']}", comparison["baseline"]
    ordered = sorted(comparison["differences"].items(), key=lambda item: -item[1][key]["mean"])
    rows = [
        (name, _signed(row[key]), _verdict(row[key], baseline), _number(row[key]["correlation"], "{:.2f}"))
        for name, row in ordered
    ]
    return [
        page.heading(f"Compared with {baseline}, run by run"),
        page.paragraph(
            f"Every policy met the same arrivals as {baseline}, so the difference in each run says more "
            f"than two averages side by side. {comparison['gpus']} GPUs; revenue per GPU and second."
        ),
        page.table(("policy", f"earns more than {baseline} by", "verdict", "correlation"), rows, texts=(2,)),
    ]


def _service_levels(summary: Summary) -> list[str]:
    """What each policy keeps of the service levels, beside the plan that keeps all of them."""
    best, others = _ranked(summary)
    levels = best["service_levels"]
    if levels is None:
        return []
    headings = [f"{name}, {level['unit']}" if level["unit"] else name for name, level in levels.items()]
    rows = [
        ("limit", *(_number(level["limit"], "{:.5g}") for level in levels.values()), "–"),
        ("plan", *(_number(level["planned"], "{:.5g}") for level in levels.values()), "–"),
    ]
    for record in (best, *others):
        measured = [level["measured"] for level in record["service_levels"].values()]
        kept = (_with_ends(estimate, "{:.5g}") for estimate in measured)
        rows.append((record["policy"], *kept, _percent(record["gap_to_plan"])))
    return [
        page.heading("What the policies keep of the service levels"),
        page.table(("policy", *headings, "below the plan's revenue"), rows),
        page.paragraph(
            f"On {best['gpus']} GPUs; in brackets the ends of the 95 % interval. Only sli_gate_and_route "
            "follows a plan under these service levels. A policy that does not keep to them may earn more "
            "than that plan.",
            "quiet",
        ),
    ]


def _plan(summary: Summary) -> list[str]:
    """The optimum of the planning problem, in words and as a table."""
    plan = summary["plan"]
    columns = ("x", "y_mixed", "y_solo", "q_prefill", "q_decode", "bid_prices")
    rows = [
        (name, *(f"{plan[column][i]:.4f}" for column in columns)) for i, name in enumerate(plan["classes"])
    ]
    prices = [
        (
            name.replace("_", " "),
            ", ".join(f"{value:.4g}" for value in (price if isinstance(price, list) else [price])),
        )
        for name, price in plan["shadow_prices"].items()
    ]
    headings = (
        "class of requests",
        "prompts being read",
        "answers beside a prompt",
        "answers on other GPUs",
        "waiting for prefill",
        "waiting for decode",
        "worth of one more request",
    )
    return [
        page.heading("The best possible, and the plan behind it"),
        page.paragraph(
            "A linear program gives the most that any policy can earn in the long run, "
            f"{plan['revenue']:.4f} per GPU and second, and how many requests a GPU should then hold on "
            f"average. {100 * sum(plan['x']):.1f} % of the GPUs read a prompt at any time."
        ),
        page.table(headings, rows),
        page.folded(
            "What one more unit of each resource would earn (shadow prices)",
            page.table(("constraint", "price, one a class where several"), prices),
        ),
    ]


def _occupancies(summary: Summary, figures: Mapping[str, str]) -> list[str]:
    """Measured occupancies against the plan, and a sample path."""
    paths = summary["sample_paths"]
    names = " and ".join(path["policy"] for path in paths)
    return [
        page.heading("What the GPUs are doing"),
        page.side_by_side(
            page.figure(
                figures["occupancies"],
                "Occupancies of each policy against the plan",
                "Average requests per GPU in each stage, by class and policy; dashed lines are the plan. A "
                "policy loses revenue where its points leave the lines.",
            ),
            page.figure(
                figures["sample_path"],
                "Occupancies and queues of the cluster in time",
                f"One run of {paths[0]['gpus']} GPUs under {names}, from an empty cluster: answers being "
                "written, prompts being read, and requests that wait; dashed lines are the plan.",
            ),
        ),
    ]


def _limits(summary: Summary) -> list[str]:
    """What the numbers rest on."""
    names = {row["name"] for row in summary["policies"]}
    items = [
        "Lengths of prompts and answers, times between arrivals and patience are random with exponential "
        "laws around the means above; an iteration takes the same time whatever the length of the texts in "
        "it.",
        "The best possible revenue is the optimum of the steady-state linear program: no policy can exceed "
        "it in the long run on any number of GPUs. A run shorter than forever may, by chance, which the "
        "intervals allow for.",
        "An interval of 95 % misses the long-run value in one case of twenty.",
    ]
    if names & {"sarathi", "fcfs_route"}:
        items.append(
            "First come, first served is simulated by drawing the class in proportion to the numbers "
            "waiting. With equal patience in all classes this changes no average; with unequal patience it "
            "changes the mix of classes (0.5 % of revenue has been seen)."
        )
    return [page.heading("What these numbers rest on"), page.bullets(items)]


def _reproduce(summary: Summary) -> list[str]:
    """How to get the same numbers again."""
    engines = dict.fromkeys(record["engine"] for record in summary["records"])
    beside = (
        "run.json (everything), results.csv (every estimate, one a line), results/ (every run, netCDF), "
        "figures/ (SVG and PNG)"
    )
    return [
        *how_to_repeat(summary, beside),
        page.folded("Engines", page.bullets(engines)),
        source(),
    ]


def _ranked(summary: Summary) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The records of the largest cluster: the one that earns most, and the others, best first."""
    most = max(record["gpus"] for record in summary["records"])
    key = f"revenue_{summary['plan']['scheme']}"
    records = [record for record in summary["records"] if record["gpus"] == most]
    best, *others = sorted(records, key=lambda record: -record[key]["mean"])
    return best, others


def _cautions(summary: Summary) -> list[str]:
    """What makes intervals doubtful: warm-ups, and a gap that is negative beyond its error."""
    lines = []
    for record in summary["records"]:
        label = f"{record['policy']} on {record['gpus']} GPUs"
        lines += [f"Caution, {label}: {caution}." for caution in record["cautions"]]
        high = record["gap"]["ci95"][1]
        if high is not None and high < 0:
            lines.append(
                f"Caution, {label}: it earned more than is possible in the long run, by more than its "
                "interval; the warm-up or the horizon is too short."
            )
    shown, hidden = lines[:4], lines[4:]
    return shown + ([f"{len(hidden)} more such cautions stand in run.json."] if hidden else [])


def _lost(record: Mapping[str, Any]) -> float:
    """Share of the requests that gave up."""
    lost = sum(record["abandonment_rate_prefill"]["mean"]) + sum(record["abandonment_rate_decode"]["mean"])
    return lost / sum(record["arrival_rate"]["mean"])


def _verdict(difference: Mapping[str, Any], baseline: str) -> str:
    low, high = difference["ci95"]
    if low is None or low <= 0 <= high:
        return f"no different from {baseline}, as far as these runs can tell"
    return f"earns {'more' if low > 0 else 'less'} than {baseline}"


def _gap_words(record: Mapping[str, Any]) -> str:
    return f"{_percent(record['gap'])} below"


def _interval(estimate: Mapping[str, Any]) -> str:
    """`291.40 (291.10 to 291.70)`."""
    return _with_ends(estimate, "{:.2f}")


def _percent(estimate: Mapping[str, Any]) -> str:
    """A share in percent with its interval: `0.52 % (0.36 % to 0.69 %)`."""
    scaled = {"mean": _scaled(estimate["mean"]), "ci95": [_scaled(end) for end in estimate["ci95"]]}
    return _with_ends(scaled, "{:.2f} %")


def _signed(estimate: Mapping[str, Any]) -> str:
    """A difference with its interval, signs shown."""
    return _with_ends(estimate, "{:+.2f}")


def _with_ends(estimate: Mapping[str, Any], form: str) -> str:
    low, high = (_number(end, form) for end in estimate["ci95"])
    return f"{_number(estimate['mean'], form)} ({low} to {high})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value).replace("-", "−")


def _scaled(value: float | None) -> float | None:
    return None if value is None else 100 * value
