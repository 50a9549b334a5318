"""The errors that jaxq raises on purpose; each is one line that says what, where and what would be right."""


class InputError(ValueError):
    """Input that jaxq refuses: a bad number, an unknown name, a file that does not hold what it should.

    The message is one line that names the field (and the file, when there is one) and what would be right.
    The command line prints it and exits with code 2.
    """


class PlanError(InputError):
    """The planning problem of an instance has no solution; the message names the classes that cause it."""


class SimulationError(RuntimeError):
    """A simulation that failed while running; the command line prints it and exits with code 1."""
