"""The command line: `jaxq`. What fails is one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import typer

from ._cli.batch import batch
from ._cli.benchmark import benchmark
from ._cli.calibrate import calibrate
from ._cli.catalogue import policies, presets
from ._cli.experiment import experiment
from ._cli.info import info
from ._cli.kept import ls, show
from ._cli.plan import plan
from ._cli.report import report
from ._cli.run import run
from ._cli.simulate import simulate
from ._cli.size import size
from ._cli.sweep import sweep
from ._cli.tune import tune
from ._errors import InputError, SimulationError

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

_UsageError = typer.BadParameter.__mro__[1]
"""The error for options that cannot be read, wherever typer takes it from."""


def _help_of(command: Callable[..., None]) -> str:
    """A command's docstring with each paragraph on one line, but for those that start with a backspace."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(p if p.startswith("\b") else p.replace("\n", " ") for p in paragraphs)


app = typer.Typer(
    name="jaxq",
    help="Large clusters of GPUs that serve LLM requests: simulate a scheduling policy, and see how far it "
    "is from the best possible revenue.\n\nStart with `jaxq run`: it measures every policy on the "
    "reference cluster, or on yours, and writes a report.",
    epilog="Exit codes: 0 done, 1 failed, 2 input refused, 130 interrupted. JAXQ_DEBUG=1 shows where a "
    "failure is.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    run,
    simulate,
    sweep,
    batch,
    size,
    tune,
    experiment,
    plan,
    report,
    ls,
    show,
    calibrate,
    presets,
    policies,
    info,
    benchmark,
):
    app.command(help=_help_of(command))(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that `arguments` (or the process's own) name, and exit with its code.

    Exit codes: 0, 1 (a simulation or something unexpected failed), 2 (input was refused), 130 (interrupted).
    """
    code = run_command(arguments)
    if code == INTERRUPTED:
        # A thread that compiles cannot be stopped, and an ordinary exit would wait for it.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. A failure is one line on stderr; nothing is raised for it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a user's own policies are, as in `my_module:MyPolicy`
    with _terminated_as_interrupted():
        try:
            code = typer.main.get_command(app).main(args=given, prog_name="jaxq", standalone_mode=False)
            sys.stdout.flush()
            if code != INTERRUPTED:
                return code if isinstance(code, int) else OK
        except (typer.Abort, KeyboardInterrupt):
            pass  # said below, as when typer has caught it already
        except BrokenPipeError:
            # The reader of stdout has gone, as in `jaxq presets | head`: nothing is left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except Exception as error:
            if os.environ.get("JAXQ_DEBUG") == "1":
                traceback.print_exception(error)
            message, code = _verdict(error)
            _say(message)
            return code
    _say("interrupted, and no half-written result is left; to go on, give the same command again")
    return INTERRUPTED


def _verdict(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, InputError):
        return str(error), REFUSED
    if isinstance(error, _UsageError):
        usage: Any = error
        path = usage.ctx.command_path if usage.ctx is not None else "jaxq"
        return f"{usage.format_message().rstrip('.')}; see `{path} --help`", REFUSED
    if isinstance(error, SimulationError):
        return str(error), FAILED
    return f"{type(error).__name__}: {error}; JAXQ_DEBUG=1 shows where", FAILED


def _say(message: str) -> None:
    """One line on stderr."""
    print(f"jaxq: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Meanwhile a request to terminate ends the process as Ctrl-C does, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
