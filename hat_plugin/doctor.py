"""``basicsr doctor``: what is installed, what is registered, what is wrong and what to do about it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from hat_plugin.doctor_probes import Report, examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument('--json', action='store_true', help='print the report as JSON, for machines')


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 if training can run, else 1."""
    report = examine()
    print(as_json(report) if args.json else as_text(report))
    return 0 if report.can_train else 1


def as_text(report: Report) -> str:
    """The report for a terminal: sections of aligned rows, then the problems, each with its remedy."""
    name_width = max(len(name) for rows in report.sections.values() for name, _, _ in rows)
    lines = []
    for title, rows in report.sections.items():
        value_width = max(len(value) for _, value, _ in rows)
        lines += [title, *(f'  {a:<{name_width}}  {b:<{value_width}}  {c}'.rstrip() for a, b, c in rows), '']
    for number, problem in enumerate(sorted(report.problems, key=lambda problem: not problem.fatal), 1):
        kind = 'Problem' if problem.fatal else 'Note'
        lines += [f'{kind} {number}: {problem.what}', f'  Remedy: {problem.remedy}', '']
    lines.append('Training can run.' if report.can_train else 'Training cannot run here yet.')
    return '\n'.join(lines)


def as_json(report: Report) -> str:
    """``{"can_train": bool, "sections": {title: [[name, value, detail]]}, "problems": [{what, remedy, fatal}]}``."""
    return json.dumps({'can_train': report.can_train, **asdict(report)}, indent=2)
