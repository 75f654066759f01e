"""The errors that a user may meet; the command line prints them without a traceback."""

from __future__ import annotations


class HatPluginError(Exception):
    """Bad input or a run that cannot go on. The message names the value, the file and the remedy."""


class OptionsError(HatPluginError):
    """An option file is wrong; all its problems are listed at once.

    Args:
        source: the option file's name.
        problems: one line a problem, each naming the option's place (``train: optim_g: lr``), its value and the remedy.
    """

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = f'{len(self.problems)} problem{"" if len(self.problems) == 1 else "s"}'
        super().__init__('\n'.join([f'{source}: {count}', *(f'  - {problem}' for problem in self.problems)]))


class DataError(HatPluginError):
    """An image, a folder, a meta_info file or an LMDB is missing or broken; the message has its path."""


class CheckpointError(HatPluginError):
    """A weights file or a training state cannot be read, written or fitted to the network."""


class TrainingError(HatPluginError):
    """Training cannot go on (a loss is not finite, say); the last good checkpoint is whole."""
