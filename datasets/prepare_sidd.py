"""The same as `basicsr prepare sidd`; see datasets/README.md."""

from __future__ import annotations

import sys

from hat_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['prepare', 'sidd', *sys.argv[1:]]))
