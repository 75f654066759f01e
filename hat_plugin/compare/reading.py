"""From option files to what is compared: a comparison file, or the test files of several networks.

A comparison file is an option file of BasicSR's with ``networks:``, a section a network, in the place of
``network_g:``. All else holds for each of them, but for what ``differences:`` gives to one alone. ``weights:`` names
files of networks that are trained already; the others are trained as the ``train`` section says. ``published:`` has
figures of each network that others published. With ``seeds:`` each is trained once from each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from hat_plugin.compare.protocol import Comparison, Contender, flat, terms, unequal
from hat_plugin.engine.networks import build
from hat_plugin.engine.options import (
    Options,
    PublishedOptions,
    RootOptions,
    apply_force_yml,
    check_options,
    read_yaml,
    section_problems,
)
from hat_plugin.engine.schema.disk import missing_files
from hat_plugin.engine.schema.report import nearest, section_of, unknown_line
from hat_plugin.engine.schema.values import CountOrZero, FolderName, Section, Text
from hat_plugin.engine.schema.values import Mapping as Subsection
from hat_plugin.errors import HatPluginError, OptionsError

OWN = ('networks', 'weights', 'differences', 'published', 'seeds')
RESERVED = ('bicubic', 'input', 'truth')  # what the report calls the pictures that no network made


class ComparisonOptions(Section):
    """What a comparison file has that others have not."""

    name: FolderName
    networks: dict[FolderName, Subsection]
    weights: dict[str, Text] | None = None
    differences: dict[str, Subsection] | None = None
    published: dict[str, PublishedOptions] | None = None
    seeds: Annotated[list[Annotated[CountOrZero, Field(lt=2**32)]], Field(min_length=2)] | None = None


def read_comparison(
    files: Sequence[str], force_yml: Sequence[str] = (), *, trains: bool = False, need_data: bool = True
) -> Comparison:
    """Read what is to be compared, and check all of it.

    Args:
        files: one comparison file, or the test files of two networks or more.
        force_yml: changes to each file, ``val:precision=bf16`` say.
        trains: whether networks without weights will be trained first.
        need_data: whether data and weights must exist.

    Raises:
        OptionsError: an option is wrong, a file is missing, or the networks are not compared on the same terms; all
            such problems are listed.
    """
    raws = [apply_force_yml(read_yaml(file), force_yml) for file in files]
    holds_networks = ['networks' in raw for raw in raws]
    if holds_networks == [True]:
        return _from_comparison_file(raws[0], files[0], trains, need_data)
    if any(holds_networks):
        name = files[holds_networks.index(True)]
        raise OptionsError(name, ['networks: a comparison file stands alone; give it without other files'])
    return _from_test_files(raws, files, need_data)


# -- a comparison file -----------------------------------------------------------------------------------------------


def _from_comparison_file(raw: Options, source: str, trains: bool, need_data: bool) -> Comparison:
    problems = section_problems(
        ComparisonOptions, {key: raw[key] for key in ('name', *OWN) if raw.get(key) is not None}
    )
    slips = [key for key in raw if key not in {*OWN, *RootOptions.model_fields} and nearest(str(key), OWN)]
    problems += [unknown_line((key,), OWN) for key in slips]
    if 'network_g' in raw:
        problems.append('network_g: has no effect beside networks; move it there, under a name of its own')
    if not problems:
        problems += _label_problems(raw)
    if problems:
        raise OptionsError(source, problems)
    contenders = tuple(_repeated(raw, label) for label in raw['networks'])
    found = {contender.label: _option_problems(contender, trains, need_data) for contender in contenders}
    problems = [_placed(line, label, found, raw) for label, lines in found.items() for line in lines]
    if problems:
        raise OptionsError(source, list(dict.fromkeys(problems)))
    return Comparison(raw['name'], source, contenders)


def _label_problems(raw: Options) -> list[str]:
    labels = raw['networks']
    problems = [] if labels else ['networks: empty; a section for each network is wanted, HAT: {type: HAT, ...} say']
    problems += [
        f'networks: {label}: the name is taken by the pictures that no network makes; choose another'
        for label in labels
        if label in RESERVED
    ]
    for key in ('weights', 'differences', 'published'):
        problems += [
            f'{key}: {label}: no such network; known here: {", ".join(labels)}'
            for label in raw.get(key) or {}
            if label not in labels
        ]
    seeds = raw.get('seeds') or []
    if seeds:
        problems += [f'seeds: {seed}: stands there twice' for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]
        problems += _without_effect(raw, labels)
    if not raw.get('train'):
        problems += [
            f'path: {key}: has no effect without a train section; trained weights are named under weights:'
            for key in section_of(raw, 'path')
        ]
    for label, own in (raw.get('differences') or {}).items():
        if label in (raw.get('weights') or {}):
            problems += [
                f'differences: {label}: {key}: has no effect: its weights are named, it is not trained; remove it'
                for key in own
                if key in ('train', 'path', 'logger', 'manual_seed')
            ]
        problems += [
            f'differences: {label}: {key}: is the same for all, or the figures could not be compared; remove it'
            for key in own
            if key in ('name', 'scale', 'network_g', 'datasets', 'val', 'tile', *OWN)
        ]
    return problems


def _without_effect(raw: Options, labels: Mapping[str, Any]) -> list[str]:
    """What `seeds` makes void, and what makes it void."""
    if not raw.get('train'):
        return ['seeds: has no effect without a train section; remove it']
    if set(labels) <= set(raw.get('weights') or {}):
        return ['seeds: has no effect: the weights of all networks are named, none is trained; remove it']
    problems = ['manual_seed: has no effect beside seeds; remove it'] if raw.get('manual_seed') is not None else []
    problems += [
        f'differences: {label}: manual_seed: has no effect beside seeds; remove it'
        for label, own in (raw.get('differences') or {}).items()
        if 'manual_seed' in own
    ]
    problems += [
        f'networks: {label}: the name is taken by a network of those here trained from that seed; choose another'
        for label in labels
        if any(label == f'{other}_seed{seed}' for other in labels for seed in raw['seeds'][1:])
    ]
    return problems


def _repeated(raw: Options, label: str) -> Contender:
    """One network, trained from each of the seeds."""
    if not raw.get('seeds'):
        return _expanded(raw, label)
    first, *others = raw['seeds']
    contender = _expanded({**raw, 'manual_seed': first}, label)
    if contender.train is None:
        return contender
    repeats = []
    for seed in others:
        name = f'{label}_seed{seed}'
        section = {name: raw['networks'][label]}
        differences = {name: section_of(section_of(raw, 'differences'), label)}
        changed = {**raw, 'networks': section, 'differences': differences, 'manual_seed': seed}
        repeats.append(_expanded(changed, name))
    return replace(contender, repeats=tuple(repeats))


def _expanded(raw: Options, label: str) -> Contender:
    """One network's training and test, as option files would have them."""
    own = section_of(section_of(raw, 'differences'), label)
    shared = {key: value for key, value in raw.items() if key not in (*OWN, 'name')}
    opt = {**merged(shared, own), 'name': f'{raw["name"]}_{label}', 'network_g': raw['networks'][label]}
    phases = {key: str(key).split('_')[0] for key in section_of(opt, 'datasets')}
    measured = 'test' if 'test' in phases.values() else 'val'

    def sets(*kinds: str) -> Options:
        return {key: value for key, value in section_of(opt, 'datasets').items() if phases[key] in kinds}

    named = section_of(raw, 'weights').get(label)
    # Averaged weights where a file has them, as `basicsr restore` takes them.
    path = {'pretrain_network_g': named, 'param_key_g': 'params_ema'}
    if named is None:
        path['pretrain_network_g'] = f'experiments/{opt["name"]}/models/net_g_latest.pth'
    others = {key: value for key, value in opt.items() if key not in ('train', 'logger')}
    test = {**others, 'datasets': {**sets(measured), **_unknown_sets(opt, phases)}, 'path': path}
    theirs = section_of(raw, 'published').get(label)
    test |= {'published': theirs} if theirs else {}
    training = None
    if named is None and opt.get('train'):
        training = {**opt, 'datasets': sets('train', 'val')}
        if not sets('val'):
            training.pop('val', None)
    return Contender(label, test, training, named is None, tuple(f'{place}: {value}' for place, value in flat(own)))


def _unknown_sets(opt: Options, phases: dict[str, str]) -> Options:
    """Blocks with a slip in their names, for the check to tell of."""
    known = ('train', 'val', 'test')
    return {key: value for key, value in section_of(opt, 'datasets').items() if phases[key] not in known}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Options:
    """`base` with the values of `changes` in their places; sections are merged, anything else replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _option_problems(contender: Contender, trains: bool, need_data: bool) -> list[str]:
    problems: list[str] = []
    for opt, is_train in ((contender.test, False), (contender.train, True)):
        if opt is None:
            continue
        try:
            check_options(opt, '', is_train=is_train, need_data=False)
        except OptionsError as error:
            problems += error.problems
        if need_data and (trains or not is_train):
            trained_here = contender.trained_here and not is_train  # its weights are looked for below
            problems += missing_files({**opt, 'path': {}} if trained_here else opt, is_train=is_train)
    if not any(problem.startswith('network_g:') for problem in problems):
        try:
            build(contender.test['network_g'])
        except HatPluginError as error:
            problems.append(f'network_g: {error}')
    will_be_trained = trains and contender.train is not None
    if need_data and contender.trained_here and not will_be_trained:
        problems += [_no_weights(run) for run in contender.runs if not run.weights.is_file()]
    return problems


def _no_weights(contender: Contender) -> str:
    remedy = 'train it: add --train' if contender.train else 'name them under weights:, or add a train section'
    return f'networks: {contender.label}: no weights ({contender.weights}); {remedy}'


def _placed(line: str, label: str, found: Mapping[str, list[str]], raw: Options) -> str:
    """A network's problem by its place in the comparison file."""
    key = line.split(':')[0]
    if key == 'network_g':
        return f'networks: {label}:{line.removeprefix("network_g:")}'
    if line.startswith('path: pretrain_network_g:') and label in section_of(raw, 'weights'):
        return f'weights: {label}:{line.removeprefix("path: pretrain_network_g:")}'
    if key == 'published':
        return f'published: {label}:{line.removeprefix("published:")}'
    own = section_of(section_of(raw, 'differences'), label)
    if key in own and not all(line in lines for lines in found.values()):
        return f'differences: {label}: {line}'
    return line


# -- test files ------------------------------------------------------------------------------------------------------


def _from_test_files(raws: list[Options], files: Sequence[str], need_data: bool) -> Comparison:
    problems = []
    for raw, file in zip(raws, files, strict=True):
        try:
            check_options(raw, file, is_train=False, need_data=need_data)
        except OptionsError as error:
            problems += [f'{file}: {problem}' for problem in error.problems]
        if not section_of(raw, 'path').get('pretrain_network_g'):
            problems.append(f'{file}: path: pretrain_network_g: missing (the trained weights); add it')
    if problems:
        raise OptionsError(' '.join(files), problems)
    # window_size, to which pictures are padded, is a network's own affair.
    agreed = [{**terms(raw, left_out=['window_size']), 'datasets': raw['datasets']} for raw in raws]
    for other, file in zip(agreed[1:], files[1:], strict=True):
        problems += unequal(agreed[0], other, str(files[0]), str(file))
    names = [str(raw['name']) for raw in raws]
    if len(set(names)) < len(names):
        problems.append(f'name: {", ".join(names)}: results are kept under their names; make them differ')
    if problems:
        raise OptionsError(' '.join(files), problems)
    shared, labels = _labels(names)
    contenders = []
    for label, raw in zip(labels, raws, strict=True):
        other = raw['model_type'] != raws[0]['model_type']
        contenders.append(Contender(label, raw, differences=(f'model_type: {raw["model_type"]}',) * other))
    return Comparison('_'.join(['compare', *shared]), ' '.join(files), tuple(contenders))


def _labels(names: list[str]) -> tuple[list[str], list[str]]:
    """What names of runs, test_HAT_SRx4 and test_SwinIR_SRx4 say, share (SRx4), and what is each one's own (HAT)."""
    words = [name.removeprefix('test_').split('_') for name in names]
    shared: list[str] = []
    while len(words) > 1 and all(len(each) > 1 for each in words) and len({each[-1] for each in words}) == 1:
        shared.insert(0, words[0][-1])
        words = [each[:-1] for each in words]
    return shared or words[0], ['_'.join(each) for each in words]
