"""The same as `basicsr prepare gopro`; see datasets/README.md."""

from __future__ import annotations

import sys

from hat_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['prepare', 'gopro', *sys.argv[1:]]))
