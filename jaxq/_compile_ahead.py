"""Programs that compile in threads while earlier ones run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

COMPILERS = 2
"""Threads that compile."""


@contextmanager
def compiling_ahead(jobs: Mapping[str, Callable[[], None]]) -> Iterator[dict[str, Future[None]]]:
    """Run each job, which compiles something, in a thread; a future a job, by its name.

    Jobs that have not begun are dropped when the context ends.
    """
    pool = ThreadPoolExecutor(COMPILERS, thread_name_prefix="compile")
    try:
        yield {name: pool.submit(job) for name, job in jobs.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
