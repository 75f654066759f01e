"""The ``basicsr`` command: a table of subcommands, each a thin call into a room of the house."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from hat_plugin.errors import HatPluginError
from hat_plugin.registry import require_registered

# Each module offers add_arguments(parser) and run(args) -> exit code. Only the module of the command that is run is
# imported, so that one broken or slow room does not stand in the way of the others.
COMMANDS = {
    'train': ('hat_plugin.train', 'train a network as an option file says; resumes with --auto_resume'),
    'test': ('hat_plugin.test', 'measure a trained network on the test sets of an option file'),
    'restore': ('hat_plugin.restore.command', 'restore a picture or a folder of pictures with a weights file'),
    'compare': (
        'hat_plugin.compare.command',
        'train and measure several networks alike; tables and a page of pictures',
    ),
    'export': ('hat_plugin.export', 'write a trained network as ONNX, for pictures of any size'),
    'prepare': ('hat_plugin.prepare.command', 'make training-ready data out of downloaded archives'),
    'check': ('hat_plugin.check', 'check an option file, its networks and its data without training'),
    'doctor': ('hat_plugin.doctor', 'say what is installed, what is registered and what is wrong'),
    'demo': ('hat_plugin.demo.command', 'train a small HAT on real photographs and compare it with bicubic'),
}


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; the arguments of `command` alone are filled in."""
    from hat_plugin import __version__

    parser = argparse.ArgumentParser(
        prog='basicsr', description='BasicSR with HAT: train, test and restore images.', allow_abbrev=False
    )
    parser.add_argument('--version', action='version', version=f'hat_plugin {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='command', required=True)
    for name, (module_name, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == command:
            importlib.import_module(module_name).add_arguments(subparser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand and return its exit code: 0 done, 1 found wanting, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    command = next((word for word in arguments if word in COMMANDS), None)
    try:
        if command not in (None, 'doctor'):  # the doctor is for those whose BasicSR does not import
            require_registered()
        args = build_parser(command).parse_args(arguments)
        code = int(importlib.import_module(COMMANDS[args.command][0]).run(args))
        sys.stdout.flush()  # a reader that has left shows here, not in the interpreter's last breath
        return code
    except HatPluginError as error:
        print(f'basicsr {command}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'basicsr {command}: interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # `basicsr doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == '__main__':
    sys.exit(main())
