"""Sections that the report of the main job and those of studies share: what was asked, how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _report_page as page

Summary = Mapping[str, Any]


def cluster_and_requests(instance: Summary) -> list[str]:
    """The GPUs, the prices and the classes of requests of an instance."""
    hardware, pricing = instance["hardware"], instance["pricing"]
    paid = (
        "prompt and answer are paid when a request completes (bundled)"
        if pricing["scheme"] == "bundled"
        else "a prompt is paid when it has been read, an answer when it is complete (separate)"
    )
    rows = [
        (
            request["name"],
            f"{request['prompt_tokens']:g}",
            f"{request['output_tokens']:g}",
            f"{request['arrival_rate']:g}",
            _patience(request["patience_rate"]),
        )
        for request in instance["classes"]
    ]
    return [
        page.paragraph(
            f"A GPU serves up to {hardware['batch_size']} requests at once. An iteration takes "
            f"{1000 * hardware['solo_iteration_time']:.4g} ms and gives each running answer one token; "
            f"while the GPU also reads a prompt, {hardware['chunk_size']} tokens at a time, it takes "
            f"{1000 * hardware['mixed_iteration_time']:.4g} ms, so that reading slows the answers beside "
            f"it down. A prompt token costs {pricing['prefill']:g}, an answer's token "
            f"{pricing['decode']:g}; {paid}."
        ),
        page.table(
            (
                "class of requests",
                "prompt, tokens",
                "answer, tokens",
                "arrivals per GPU and second",
                "gives up waiting after",
            ),
            rows,
        ),
    ]


def how_to_repeat(summary: Summary, beside: str) -> list[str]:
    """Command, seed, instance, devices, versions and time; `beside` says what files stand beside the page."""
    environment, instance = summary["environment"], summary["instance"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    kinds = [f"{device['platform']} ({device['kind']})" for device in environment["devices"]]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return [
        page.heading("How to get these numbers again"),
        page.code(summary["command"]),
        page.bullets(
            (
                f"Seed {summary['seed']}: the same seed gives the same numbers on any number of devices of "
                "one kind.",
                f"Instance {instance['name']}, fingerprint {instance['fingerprint']} (instance.toml beside "
                "this page).",
                f"Devices: {devices}; {environment['machine']}, {environment['cores']} cores.",
                f"Versions: {versions}.",
                f"Took {summary['seconds']:.0f} s, compilation included; finished {summary['finished']}.",
            )
        ),
        page.paragraph(f"Beside this page: {beside}.", "quiet"),
    ]


def source() -> str:
    """Where the model comes from."""
    return page.paragraph(
        "Model: R. Lin, Z. Ding, Z. Han, J. Zhang, Large-Scale LLM Inference with Heterogeneous "
        "Workloads: Prefill-Decode Contention and Asymptotically Optimal Control, arXiv:2602.02987 "
        "(2026) [Lin26].",
        "quiet",
    )


def _patience(rate: float) -> str:
    return f"{1 / rate:.4g} s on average" if rate > 0 else "never"
