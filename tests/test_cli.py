"""The `basicsr` command: its table, its exit codes, and what it says when it cannot go on."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hat_plugin
from hat_plugin import cli as command_line
from hat_plugin import registry
from hat_plugin.errors import HatPluginError, OptionsError

Cli = Callable[..., Any]


def _toy_command(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]) -> None:
    """Put the command 'toy' into the table, with one option."""
    toy = SimpleNamespace(add_arguments=lambda parser: parser.add_argument('--size', type=int, default=1), run=run)
    monkeypatch.setitem(sys.modules, 'toy_command', toy)
    monkeypatch.setitem(command_line.COMMANDS, 'toy', ('toy_command', 'for tests'))


def test_help_lists_each_command(cli: Cli) -> None:
    outcome = cli('--help')
    assert outcome.code == 0
    for name in command_line.COMMANDS:
        assert f'\n    {name} ' in outcome.out


def test_version(cli: Cli) -> None:
    assert cli('--version').out.strip() == f'hat_plugin {hat_plugin.__version__}'


@pytest.mark.parametrize('name', command_line.COMMANDS)
def test_each_command_explains_itself(cli: Cli, name: str) -> None:
    outcome = cli(name, '--help')
    assert outcome.code == 0
    assert outcome.out.startswith(f'usage: basicsr {name}')


@pytest.mark.parametrize('name', command_line.COMMANDS)
def test_each_command_keeps_its_promise_to_the_table(name: str) -> None:
    module = importlib.import_module(command_line.COMMANDS[name][0])
    assert callable(module.add_arguments)
    assert callable(module.run)


@pytest.mark.parametrize('arguments', [[], ['no-such-command'], ['doctor', '--no-such-option'], ['--vers']])
def test_wrong_use_exits_2_with_the_usage(cli: Cli, arguments: list[str]) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith('usage: basicsr')


def test_the_exit_code_is_the_command_s(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _toy_command(monkeypatch, lambda args: args.size)
    assert cli('toy', '--size', '1').code == 1
    assert cli('toy', '--size', '0').code == 0


@pytest.mark.parametrize('error', [HatPluginError('a.png: broken'), OptionsError('x.yml', ['train: lr: wrong'])])
def test_users_mistakes_are_told_without_a_traceback(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: HatPluginError
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    _toy_command(monkeypatch, run)
    outcome = cli('toy')
    assert outcome.code == 2
    assert outcome.err == f'basicsr toy: {error}\n'


def test_our_own_mistakes_keep_their_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    _toy_command(monkeypatch, run)
    with pytest.raises(ZeroDivisionError):
        cli('toy')


def test_an_interrupt_exits_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    _toy_command(monkeypatch, run)
    assert cli('toy').code == 130


def test_without_a_working_basicsr_only_the_doctor_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _toy_command(monkeypatch, lambda args: 0)
    monkeypatch.setattr(registry, '_failure', ImportError('libtorch is gone'))
    outcome = cli('toy')
    assert outcome.code == 2
    assert 'libtorch is gone' in outcome.err
    assert '`basicsr doctor`' in outcome.err
    doctor = cli('doctor')
    assert doctor.code == 1
    assert 'libtorch is gone' in doctor.out


CLOSED_PIPE = """
import sys, types
from hat_plugin import cli
sys.modules['toy'] = types.SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: print('hello') or 0)
cli.COMMANDS['toy'] = ('toy', '')
sys.exit(cli.main(['toy']))
"""


def test_a_closed_pipe_is_no_error(repository: Path) -> None:
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-c', CLOSED_PIPE], cwd=repository, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert 'BrokenPipe' not in errors, errors
    assert process.returncode == 1
