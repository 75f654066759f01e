"""The model of HAT's published option files."""

from __future__ import annotations

from hat_plugin.engine.options import RootOptions
from hat_plugin.models.restoration_model import RestorationModel


class HATModel(RestorationModel):
    """`RestorationModel` under the name that published HAT option files ask for.

    The published class added two things to BasicSR's ``SRModel``: padding to the window, which HAT's forward now does,
    and the ``tile:`` block, which every model here understands.
    """

    OPTIONS = RootOptions
