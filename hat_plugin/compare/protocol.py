"""What is compared, and on what terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hat_plugin.engine.options import Options, prepare_options
from hat_plugin.engine.schema.report import section_of


@dataclass(frozen=True)
class Contender:
    """A network of the comparison.

    Attributes:
        label: what it is called.
        test: the options of its test, as a test file has them.
        train: those of its training; None where its weights were named, or nothing says how to train it.
        trained_here: whether its weights are those of a training of this comparison's own.
        differences: what is not as for the others, place by place, in words.
        repeats: the same trained from other seeds, each under a label of its own.
    """

    label: str
    test: Options
    train: Options | None = None
    trained_here: bool = False
    differences: tuple[str, ...] = ()
    repeats: tuple[Contender, ...] = ()

    @property
    def runs(self) -> tuple[Contender, ...]:
        """Itself and its repeats."""
        return (self, *self.repeats)

    @property
    def weights(self) -> Path:
        """Its weights file."""
        return Path(self.test['path']['pretrain_network_g']).expanduser()

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """Figures that others published of it: test set -> metric -> figure."""
        return dict(section_of(section_of(self.test, 'published'), 'figures'))


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        name: of the comparison and its folder in results/.
        source: the file or files, for messages.
        contenders: in the order of the report; differences are taken to the first.
    """

    name: str
    source: str
    contenders: tuple[Contender, ...]

    @property
    def runs(self) -> tuple[Contender, ...]:
        """All of them and their repeats, the first seed's before the second's."""
        most = max(len(contender.runs) for contender in self.contenders)
        return tuple(
            contender.runs[number]
            for number in range(most)
            for contender in self.contenders
            if number < len(contender.runs)
        )

    def prepared(self, contender: Contender) -> Options:
        """A contender's test options with all that models and data sets look up."""
        return prepare_options(contender.test, root_path=Path.cwd(), is_train=False)


def terms(opt: Mapping[str, Any], *, left_out: Sequence[str] = ()) -> Options:
    """What figures depend on besides network and pictures: scale, metrics, precision, tiles.

    Args:
        opt: test options, prepared or not.
        left_out: keys of ``val`` that are not to be looked at.
    """
    shown = ('save_img', 'suffix', 'pbar')
    val = {key: value for key, value in section_of(opt, 'val').items() if key not in (*shown, *left_out)}
    return {'scale': opt.get('scale'), 'val': val, 'tile': opt.get('tile')}


def unequal(one: Options, other: Options, one_file: str, other_file: str) -> list[str]:
    """A line for each place where two files' terms differ."""
    first, second = dict(flat(one)), dict(flat(other))
    return [
        f'{place}: {first.get(place)!r} in {one_file}, {second.get(place)!r} in {other_file}; figures are compared on '
        'the same terms alone, make them equal'
        for place in dict.fromkeys([*first, *second])
        if first.get(place) != second.get(place)
    ]


def flat(section: Mapping[str, Any], place: str = '') -> list[tuple[str, Any]]:
    """(place, value) of every value in nested sections, ``train: optim_g: lr``."""
    pairs: list[tuple[str, Any]] = []
    for key, value in section.items():
        here = f'{place}: {key}' if place else str(key)
        pairs += flat(value, here) if isinstance(value, Mapping) else [(here, value)]
    return pairs
