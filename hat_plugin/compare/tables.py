"""What was found, as tables: markdown for people, LaTeX for papers, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hat_plugin.compare.cost import Cost, side_of
from hat_plugin.compare.measuring import Findings, Scores, scale_of
from hat_plugin.compare.protocol import Comparison
from hat_plugin.compare.statistics import CONFIDENCE, Difference, difference
from hat_plugin.compare.text import figure, gigas, markdown_table, megabytes, seconds, signed, spread_figure
from hat_plugin.models.validation import describe_metric


@dataclass(frozen=True)
class Result:
    """All that a comparison found.

    Attributes:
        comparison: what was compared.
        findings: test set -> who -> figures; the baseline first, then the networks in order.
        costs: label -> cost.
        machine: lines that say what it ran on.
        val: the ``val`` section: what is measured, and how.
    """

    comparison: Comparison
    findings: Findings
    costs: dict[str, Cost]
    machine: list[str]
    val: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Name -> options."""
        found: dict[str, dict[str, Any]] = self.val['metrics']
        return found

    @property
    def labels(self) -> list[str]:
        """Of the networks."""
        return [contender.label for contender in self.comparison.contenders]

    @property
    def baseline(self) -> str:
        """What the input itself is called."""
        return next(iter(next(iter(self.findings.values()))))

    @property
    def has_seeds(self) -> bool:
        """Whether networks were trained from several seeds."""
        return any(contender.repeats for contender in self.comparison.contenders)

    def higher_is_better(self, metric: str) -> bool:
        """Of a metric, as the options say."""
        return self.metrics[metric].get('better', 'higher') == 'higher'

    def measured(self, dataset: str) -> list[str]:
        """The metrics that a test set's pictures have; without a ground truth those alone that need none."""
        scores = next(iter(self.findings[dataset].values()))
        return [metric for metric in self.metrics if scores.values(metric).size]

    def differences(self, dataset: str, metric: str) -> dict[str, Difference]:
        """Each network after the first -> its difference to the first."""
        scores, first = self.findings[dataset], self.labels[0]
        better = self.higher_is_better(metric)
        return {
            label: difference(scores[label], scores[first], metric, higher_is_better=better)
            for label in self.labels[1:]
        }

    def ranks(self, dataset: str, metric: str) -> dict[str, int]:
        """Network -> its place by the mean, 1 for the best, as the table's digits show it."""
        sign = -1 if self.higher_is_better(metric) else 1
        shown = {label: sign * float(figure(self.findings[dataset][label].mean(metric))) for label in self.labels}
        return {label: 1 + sum(other < value for other in shown.values()) for label, value in shown.items()}


def bold_first(text: str, rank: int) -> str:
    """The best in bold, the second underlined, as papers have it."""
    return {1: f'**{text}**', 2: f'<u>{text}</u>'}.get(rank, text)


# -- the tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureRow:
    """A row of the table of figures.

    Attributes:
        who: the baseline, a network, or a network and whose figures these are.
        cells: a figure for each column, as text; '-' where there is none.
        ranks: a network's place in each column, 1 for the best; empty for others.
    """

    who: str
    cells: list[str]
    ranks: list[int]


def figures(result: Result) -> tuple[list[str], list[FigureRow]]:
    """Columns, a metric of a test set each; rows: the baseline, each network, and below it what was published of it."""
    pairs = [(dataset, metric) for dataset in result.findings for metric in result.measured(dataset)]
    ranks = {pair: result.ranks(*pair) for pair in pairs}

    def row(who: str, places: list[int]) -> FigureRow:
        cells = [spread_figure(result.findings[name][who].by_seed(metric)) for name, metric in pairs]
        return FigureRow(who, cells, places)

    rows = [row(result.baseline, [])]
    for contender in result.comparison.contenders:
        rows.append(row(contender.label, [ranks[pair][contender.label] for pair in pairs]))
        theirs = [contender.published.get(name, {}).get(metric) for name, metric in pairs]
        if any(value is not None for value in theirs):
            cells = ['-' if value is None else figure(value) for value in theirs]
            rows.append(FigureRow(f'{contender.label}, published', cells, []))
    return [f'{dataset} {metric}' for dataset, metric in pairs], rows


def marked(row: FigureRow, mark: Callable[[str, int], str] = bold_first) -> list[str]:
    """A row's cells, those of networks by their ranks."""
    return list(map(mark, row.cells, row.ranks)) if row.ranks else row.cells


def cost_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what networks cost."""
    side = side_of(scale_of(result.comparison.contenders[0].test))
    timed = any(cost.seconds for cost in result.costs.values())
    columns = ['', 'parameters', f'MACs, {side}x{side}', 'without attention products']
    columns += ['time', 'memory'] if timed else []
    rows = []
    for label, cost in result.costs.items():
        macs = cost.macs
        cells = [f'{cost.parameters:,}', gigas(macs.total if macs else None)]
        cells.append(gigas(macs.without_attention_products if macs else None))
        if timed:
            cells += [
                seconds(cost.seconds) if cost.seconds else '-',
                '-' if cost.bytes is None else megabytes(cost.bytes),
            ]
        rows.append([label, *cells])
    return columns, rows


def difference_rows(result: Result) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of how far each network is from the first."""
    rows = []
    for dataset in result.findings:
        for metric in result.measured(dataset):
            for label, found in result.differences(dataset, metric).items():
                cells = [signed(found.mean), found.between, str(found.better), str(found.worse)]
                rows.append([f'{label}, {dataset} {metric}', *cells, *([found.seeds] if result.has_seeds else [])])
    columns = [f'to {result.labels[0]}', 'mean', f'{CONFIDENCE:.0%} interval', 'pictures better', 'worse']
    return columns + ['by seed'] * result.has_seeds, rows


def protocol_lines(result: Result) -> list[str]:
    """How figures were taken, what was not alike, and what ran where."""
    scale = scale_of(result.comparison.contenders[0].test)
    lines = [f'{name}: {describe_metric(options, result.val)}' for name, options in result.metrics.items()]
    lines.append(f'precision: {result.val.get("precision") or "fp32"}')
    for dataset, scores in result.findings.items():
        tiled = {label: scores[label].tiled for label in result.labels if scores[label].tiled}
        told = ', '.join(f'{label} {count} in tiles' for label, count in tiled.items()) or 'none in tiles'
        lines.append(f'{dataset}: {len(scores[result.baseline].pictures)} pictures, {told}')
    if result.has_seeds:
        lines.append("several seeds: figures are mean and standard deviation over trainings, pictures are the first's")
    if scale > 1:
        lines.append(f"bicubic: the input enlarged {scale} times by MATLAB's bicubic")
    for contender in result.comparison.contenders:
        lines += [f'{run.label}: weights {run.test["path"]["pretrain_network_g"]}' for run in contender.runs]
        if contender.published:
            lines.append(f'{contender.label}, published: {contender.test["published"]["source"]}')
        lines += [f'{contender.label} differs: {line}' for line in contender.differences]
    return lines


def markdown(result: Result) -> str:
    """The whole as a page of markdown."""
    names, found = figures(result)
    table = markdown_table(['', *names], [[row.who, *marked(row)] for row in found])
    blocks = [f'# {result.comparison.name}', table, markdown_table(*cost_rows(result))]
    columns, rows = difference_rows(result)
    if rows:
        blocks += ['## Differences, picture by picture', markdown_table(columns, rows)]
    blocks += ['## Protocol', '\n'.join(f'- {line}' for line in protocol_lines(result)), '\n'.join(result.machine)]
    return '\n\n'.join(blocks) + '\n'


def latex(result: Result) -> str:
    """The figures as a table for a paper, of the package booktabs."""

    def mark(text: str, rank: int) -> str:
        return {1: rf'\textbf{{{text}}}', 2: rf'\underline{{{text}}}'}.get(rank, text)

    columns, rows = figures(result)
    head, body = ['Method', 'Params (M)', 'MACs (G)', *columns], []
    for row in rows:
        cost = result.costs.get(row.who)
        size = (
            [f'{cost.parameters / 1e6:.2f}', f'{cost.macs.total / 1e9:.1f}' if cost.macs else '-']
            if cost
            else ['-'] * 2
        )
        body.append([_escaped(row.who), *size, *(cell.replace('±', r'$\pm$') for cell in marked(row, mark))])
    lines = [rf'\begin{{tabular}}{{l{"r" * (len(head) - 1)}}}', r'\toprule', ' & '.join(map(_escaped, head)) + r' \\']
    lines.append(r'\midrule')
    lines += [' & '.join(row) + r' \\' for row in body]
    return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


def every_run(result: Result, scores: dict[str, Scores]) -> dict[str, Scores]:
    """A test set's figures by everybody, repeats under their own labels."""
    found = dict(scores)
    for contender in result.comparison.contenders:
        repeats = scores[contender.label].repeats
        found |= dict(zip((run.label for run in contender.repeats), repeats, strict=True))
    return found


def _escaped(text: str) -> str:
    hats = {'^': r'\^{}', '~': r'\~{}'}
    return ''.join(f'\\{letter}' if letter in '&%$#_{}' else hats.get(letter, letter) for letter in text)


def comma_separated(result: Result) -> str:
    """Every figure of every picture, a line each."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['dataset', 'picture', 'who', 'metric', 'value'])
    for dataset, scores in result.findings.items():
        for who, found in every_run(result, scores).items():
            for picture, row in found.pictures.items():
                writer.writerows([dataset, picture, who, metric, repr(value)] for metric, value in row.items())
    return file.getvalue()


def record(result: Result) -> dict[str, Any]:
    """Everything, of JSON's types."""
    return {
        'name': result.comparison.name,
        'machine': result.machine,
        'protocol': protocol_lines(result),
        'costs': {label: asdict(cost) for label, cost in result.costs.items()},
        'means': {
            dataset: {
                who: {metric: found.mean(metric) for metric in result.measured(dataset)}
                for who, found in scores.items()
            }
            for dataset, scores in result.findings.items()
        },
        'published': {
            contender.label: contender.test['published']
            for contender in result.comparison.contenders
            if contender.published
        },
        'differences': {
            dataset: {
                metric: {label: asdict(found) for label, found in result.differences(dataset, metric).items()}
                for metric in result.measured(dataset)
            }
            for dataset in result.findings
        },
        'pictures': {
            dataset: {who: found.pictures for who, found in every_run(result, scores).items()}
            for dataset, scores in result.findings.items()
        },
    }
