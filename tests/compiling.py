"""What a compiler makes of Triton kernels, for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def compiled(tmp_path: Path, *arguments: object) -> dict[str, dict[str, Any]]:
    """What `compile_triton` says of each kernel, its last launch, in a process whose triton does not interpret."""
    script = Path(__file__).parent / 'kernels' / 'compile_triton.py'
    path = os.pathsep.join(filter(None, [str(script.parents[2]), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(tmp_path), 'PYTHONPATH': path}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return {said['kernel']: said for said in map(json.loads, done.stdout.splitlines())}
