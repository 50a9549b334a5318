"""Makes the preset files of this folder from the raw measurements: python calibration_data/build.py FOLDER

FOLDER holds `linear_layer_iteration_time.csv` and `splitwise_perf_model.csv`. Nothing is random but a seeded
bootstrap, and every fitted number is rounded to five digits: a second run writes the same files.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jaxq._calibration import Calibration, Coefficient, calibrate, calibrate_file
from jaxq._errors import InputError

SOLO_BATCH = 16
"""Decode iterations are taken at the batch size of the reference instance."""

HOLDS = 0.10
"""A law or a line holds on prompt phases if no size's mean time is further from it, relative to the mean."""

LINE_SIZES, LINE_INCLUDES = 4, (512, 1024)
"""A line is fitted to at least so many consecutive sizes, from at most the one to at least the other."""

VIDUR = {
    "title": "Linear layers, norms and activations of one forward pass, on three GPUs",
    "source": "sums of the per-operator medians of Vidur's operator profiles, times the number of layers "
    "(github.com/microsoft/vidur; Agrawal et al., Vidur, MLSys 2024)",
    "licence": "MIT",
    "leaves_out": "Attention over the KV cache, communication between the cards of a tensor-parallel group, "
    "sampling and scheduling: real iterations take longer, decodes with long contexts above all.",
}
SPLITWISE = {
    "title": "Whole requests on A100 and H100, tensor parallel",
    "source": "measurements of splitwise-sim (github.com/Mutinifni/splitwise-sim; Patel et al., Splitwise, "
    "ISCA 2024): prompt phases of prompt_size * batch_size tokens; decode iterations from token_time",
    "licence": "MIT",
    "leaves_out": "Decodes beside a prefill: the prompt phases ran alone, whole prompts at once, so the work "
    "of the decodes in a mixed iteration and attention over earlier chunks of the same prompt are not in "
    "alpha and beta. Prompts alone and in batches are pooled.",
}
LIN26 = {
    "title": "The two published fits of [Lin26] section 6",
    "source": "R. Lin, Z. Ding, Z. Han, J. Zhang, Large-Scale LLM Inference with Heterogeneous Workloads: "
    "Prefill-Decode Contention and Asymptotically Optimal Control, arXiv:2602.02987 (2026), section 6",
    "licence": "numbers quoted from the publication",
    "leaves_out": "The paper gives neither the measurements nor intervals, nor the chunk sizes and the "
    "context lengths that the fits hold for.",
}
MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "internlm/internlm-20b": "internlm-20b",
    "codellama/CodeLlama-34b-Instruct-hf": "codellama-34b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "Qwen/Qwen-72B": "qwen-72b",
    "llama2-70b": "llama-2-70b",
    "bloom-176b": "bloom-176b",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the preset files from the raw measurements.")
    parser.add_argument("data", type=Path, help="folder of the raw CSV files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the TOML files")
    arguments = parser.parse_args()
    for name, text in build(arguments.data).items():
        (arguments.out / name).write_text(text, encoding="utf-8")


def build(data: Path) -> dict[str, str]:
    """The text of each preset file, by its name."""
    return {
        "lin26_qwen.toml": _toml(LIN26, _lin26(), digits=17),
        "splitwise.toml": _toml(SPLITWISE, _splitwise(data / "splitwise_perf_model.csv")),
        "vidur_linear_layers.toml": _toml(VIDUR, _vidur(data / "linear_layer_iteration_time.csv")),
    }


def _lin26() -> list[dict[str, Any]]:
    fits = (("8b", 0.0174, 6.2e-5, 0.022), ("4b", 0.0152, 3.6e-5, 1 / 52.63))
    return [
        {
            "name": f"a100-40gb/qwen-{size}",
            "gpu": "a100-40gb",
            "model": f"Qwen-{size.upper()} (vLLM)",
            "tensor_parallel": 1,
            "fit": "published",
            "chunk_range": [1.0, math.inf],
            "alpha": Coefficient(alpha),
            "beta": Coefficient(beta),
            "solo_iteration_time": Coefficient(solo),
            "notes": "The paper states R^2 > 0.99; its experiments use chunks of 256 tokens."
            + (" It gives the decode iteration as gamma = 52.63/s." if size == "4b" else ""),
        }
        for size, alpha, beta, solo in fits
    ]


def _vidur(file: Path) -> list[dict[str, Any]]:
    """One preset a combination of gpu, model and tensor parallelism."""
    presets = []
    for law in calibrate_file(file).calibrations:
        group = dict(law.group)
        about = {
            "name": f"vidur-{group['gpu']}/{MODELS[group['model']]}-tp{group['tensor_parallel']}",
            "gpu": group["gpu"],
            "model": group["model"],
            "tensor_parallel": int(group["tensor_parallel"]),
        }
        presets.append(about | _of_law(law, solo=law.base) | {"notes": ""})
    return presets


def _of_law(law: Calibration, solo: Coefficient) -> dict[str, Any]:
    return {
        "fit": "law",
        "chunk_range": [float(math.ceil(law.knee.value)), law.token_range[1]],
        "alpha": law.alpha,
        "beta": law.slope,
        "solo_iteration_time": solo,
        "base": law.base,
        "slope": law.slope,
        "knee": law.knee,
        "r2": law.r2,
        "max_relative_error": law.max_relative_error,
        "measurements": law.n_measurements,
    }


def _splitwise(file: Path) -> list[dict[str, Any]]:
    """One preset a combination of model, card and tensor parallelism; a power-capped card is its own card."""
    groups: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            key = row["model"], row["hardware"], int(row["tensor_parallel"])
            groups.setdefault(key, []).append({name: float(row[name]) for name in _SPLITWISE_NUMBERS})
    return [_splitwise_preset(*key, rows) for key, rows in groups.items()]


_SPLITWISE_NUMBERS = ("prompt_size", "batch_size", "prompt_time", "token_time")


def _splitwise_preset(
    model: str, hardware: str, tensor_parallel: int, rows: list[dict[str, float]]
) -> dict[str, Any]:
    solo, about_solo = _solo(rows)
    tokens, times, about_dropped = _prompts(rows)
    try:
        fit, about_fit = _of_law(_holding_law(tokens, times), solo), ""
    except InputError as error:
        fit, about_fit = _of_line(tokens, times, solo), f" No law with a knee: {error}."
    about_cap = (
        " The source scales this card from the uncapped one: prompt times are exactly 1.3 times those, "
        "decode times are the same."
        if hardware.endswith("-pcap")
        else ""
    )
    about = {
        "name": f"splitwise-{hardware}/{MODELS[model]}-tp{tensor_parallel}",
        "gpu": hardware,
        "model": model,
        "tensor_parallel": tensor_parallel,
    }
    return about | fit | {"notes": about_solo + about_fit + about_dropped + about_cap}


def _solo(rows: list[dict[str, float]]) -> tuple[Coefficient, str]:
    """The decode iteration at the batch size of the reference instance, and how it varies with the batch."""
    by_batch: dict[int, list[float]] = {}
    for row in rows:
        if row["prompt_size"] == 512:
            by_batch.setdefault(int(row["batch_size"]), []).append(row["token_time"] / 1000)
    times = np.array(by_batch[SOLO_BATCH])
    half = stats.t.ppf(0.975, len(times) - 1) * stats.sem(times)
    mean = float(times.mean())
    first, last = min(by_batch), max(by_batch)
    note = (
        f"solo_iteration_time is the decode iteration at batch {SOLO_BATCH} and 512-token prompts "
        f"({1000 * np.mean(by_batch[first]):.1f} ms at batch {first}, {1000 * np.mean(by_batch[last]):.1f} "
        f"ms at batch {last}), measured apart from the prompt phases."
    )
    return Coefficient(mean, (mean - half, mean + half)), note


def _prompts(rows: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray, str]:
    """Tokens and times of the prompt phases, less sizes that took under half the time of a smaller size."""
    tokens = np.array([row["prompt_size"] * row["batch_size"] for row in rows])
    times = np.array([row["prompt_time"] for row in rows]) / 1000
    sizes = np.unique(tokens)
    medians = np.array([np.median(times[tokens == size]) for size in sizes])
    absurd = sizes[medians < 0.5 * np.maximum.accumulate(medians)]
    keep = ~np.isin(tokens, absurd)
    note = "".join(
        f" The prompt phases of {size:.0f} tokens are left out: they took "
        f"{np.median(times[tokens == size]):.2f} s, less than half of what fewer tokens took, so they cannot "
        "have run as recorded."
        for size in absurd
    )
    return tokens[keep], times[keep], note


def _holding_law(tokens: np.ndarray, times: np.ndarray) -> Calibration:
    """The law with a knee, refused unless it holds at every size."""
    law = calibrate(tokens, times)
    sizes, means = _size_means(tokens, times)
    errors = np.abs(law.law(sizes) / means - 1)
    if errors.max() > HOLDS:
        raise InputError(
            f"the best one misses the mean time at {sizes[errors.argmax()]:.0f} tokens by {errors.max():.0%}"
        )
    return law


def _size_means(tokens: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.unique(tokens)
    return sizes, np.array([times[tokens == size].mean() for size in sizes])


def _of_line(tokens: np.ndarray, times: np.ndarray, solo: Coefficient) -> dict[str, Any]:
    """A straight line, by least squares of relative errors, on the best run of sizes on which it holds."""
    sizes, means = _size_means(tokens, times)
    low, high = _best_run(sizes, means)
    line, intervals = _line_intervals(sizes[low:high], means[low:high])
    used = (tokens >= sizes[low]) & (tokens <= sizes[high - 1])
    tokens, times = tokens[used], times[used]
    fitted = np.polyval(line, tokens)
    return {
        "fit": "line",
        "chunk_range": [float(sizes[low]), float(sizes[high - 1])],
        "alpha": intervals[1],
        "beta": intervals[0],
        "solo_iteration_time": solo,
        "r2": float(1 - np.sum((times - fitted) ** 2) / np.sum((times - times.mean()) ** 2)),
        "max_relative_error": float(np.max(np.abs(fitted / times - 1))),
        "measurements": len(tokens),
    }


def _best_run(sizes: np.ndarray, means: np.ndarray) -> tuple[int, int]:
    """Start and end of the longest run of sizes on which a line holds; of the longest the best fitted."""
    runs = []
    for low in range(len(sizes)):
        for high in range(low + LINE_SIZES, len(sizes) + 1):
            x, t = sizes[low:high], means[low:high]
            error = np.max(np.abs(np.polyval(_line(x, t), x) / t - 1))
            if x[0] <= LINE_INCLUDES[0] and x[-1] >= LINE_INCLUDES[1] and error <= HOLDS:
                runs.append((high - low, -error, low, high))
    return max(runs)[2:]


def _line(sizes: np.ndarray, means: np.ndarray) -> np.ndarray:
    return np.polyfit(sizes, means, 1, w=1 / means)


def _line_intervals(sizes: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, list[Coefficient]]:
    """The line (slope, intercept) and its intervals, by the wild bootstrap that `calibrate` uses for laws."""
    line = _line(sizes, means)
    fitted = np.polyval(line, sizes)
    design = np.stack([np.ones_like(sizes), sizes / sizes[-1]], axis=1) / means[:, None]
    leverage = (np.linalg.qr(design)[0] ** 2).sum(axis=1)
    student = stats.t.ppf(0.975, len(sizes) - 2) / stats.norm.ppf(0.975)
    residual = student * np.log(means / fitted) / (1 - leverage)
    factors = np.random.default_rng(0).standard_normal((2000, len(sizes)))
    draws = np.array([_line(sizes, fitted * np.exp(residual * factor)) for factor in factors])
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return line, [
        Coefficient(float(x), (float(2 * x - b), float(2 * x - a)))
        for x, a, b in zip(line, low, high, strict=True)
    ]


_UNITS = {
    "alpha": "s",
    "beta": "s/token",
    "solo_iteration_time": "s",
    "base": "s",
    "slope": "s/token",
    "knee": "tokens",
    "chunk_range": "tokens",
}


def _toml(campaign: dict[str, str], presets: list[dict[str, Any]], digits: int = 5) -> str:
    """A preset file; its numbers are rounded to this many significant digits."""
    lines = ["# Made by build.py; change that, not this.", "", "[campaign]"]
    lines += [f"{key} = {_value(value, digits)}" for key, value in campaign.items()]
    for preset in presets:
        lines += ["", "[[presets]]"]
        for key, value in preset.items():
            unit = f"  # {_UNITS[key]}" if key in _UNITS else ""
            if isinstance(value, Coefficient):
                lines.append(f"{key} = {_value(value.value, digits)}{unit}")
                if value.ci95 is not None:
                    lines.append(f"{key}_ci95 = {_value(list(value.ci95), digits)}")
            elif value != "":
                lines.append(f"{key} = {_value(value, digits)}{unit}")
    return "\n".join(lines) + "\n"


def _value(value: Any, digits: int) -> str:
    """A TOML value."""
    if isinstance(value, list):
        return f"[{', '.join(_value(item, digits) for item in value)}]"
    if isinstance(value, float):
        return repr(float(f"{value:.{digits}g}"))
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
