"""HAT and its rivals inside BasicSR. Importing this package makes BasicSR know its networks, models and data sets."""

from __future__ import annotations

from hat_plugin.registry import register, require_registered, try_register

__version__ = '0.1.0'
__all__ = ['__version__', 'register', 'require_registered']

try_register()
