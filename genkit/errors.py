"""Expected failures.

Each has one message that says what to do, and the command line shows it without a traceback.
"""


class GenkitError(Exception):
    """Base of every expected error; `exit_code` is what the command line returns for it."""

    exit_code = 1


class OptionError(GenkitError):
    """An option is unknown, ambiguous or has a value that it cannot take."""

    exit_code = 2


class MissingComponent(GenkitError):
    """A component is asked for by a name that no installed plugin provides."""


class PluginError(GenkitError):
    """A plugin breaks the contract.

    A hook returned nonsense, a name is taken, or a target cannot be imported.
    """


class CheckpointError(GenkitError):
    """A checkpoint or token file is missing, damaged, of another kind or for another model."""


class HoldsPrior(CheckpointError):
    """A checkpoint is a prior, where a tokenizer is asked for."""


class DataError(GenkitError):
    """Images cannot be found or read."""


class UnreadableImage(DataError):
    """One image of a data set cannot be read; the caller leaves it out."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be read: {reason}")
        self.name, self.reason = name, reason


class TrainingError(GenkitError):
    """A run cannot start, continue or be resumed."""


class FailedTogether(GenkitError):
    """Something failed in one of several processes, and all of them stop together."""


def reason_of(error: Exception) -> str:
    """The class and the message of an error; of a `ValueError` the message alone."""
    text = str(error)
    return text if text and type(error) is ValueError else f"{type(error).__name__}: {text}"
