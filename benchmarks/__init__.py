"""Side-by-side measurements against peers, and the tables that the README quotes: ``python -m benchmarks --help``.

The rivals are spandrel's HAT, which computes what the published code computes, with the same weights, and BasicSR's
SwinIR. Rivals take turns in one process; memory is measured in a process for each. The arrows run one way: __main__ ->
the parts (inference, training, memory, growth, data) -> comparison, limits, probe -> timing, networks, report.
"""

import hat_plugin  # noqa: F401 - `import basicsr` works from here on
