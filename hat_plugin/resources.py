"""Files that come with the project: found in a checkout as well as in an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

from hat_plugin.errors import HatPluginError

_PACKAGE = Path(__file__).resolve().parent


def options_folder() -> Path:
    """The folder of option files: ``options/`` of the checkout, or its copy inside the installed package.

    Raises:
        HatPluginError: neither is there (a broken installation).
    """
    checkout = _PACKAGE.parent
    places = [_PACKAGE / 'options']
    if (checkout / 'setup.py').is_file():  # not site-packages, where an options/ may belong to anybody
        places.insert(0, checkout / 'options')
    for place in places:
        if place.is_dir():
            return place
    raise HatPluginError(f'no option files at {" or ".join(map(str, places))}; reinstall hat-plugin')


def option_file(name: str) -> Path:
    """The option file of this name, ``demo_HAT_SRx4.yml`` say; the ending may be left out.

    Raises:
        HatPluginError: there is none; the message has the nearest names.
    """
    folder = options_folder()
    path = folder / (name if name.endswith('.yml') else f'{name}.yml')
    if path.parent == folder and path.is_file():
        return path
    near = difflib.get_close_matches(path.stem, [file.stem for file in sorted(folder.glob('*.yml'))], cutoff=0.4)
    hint = f'did you mean {" or ".join(near)}?' if near else 'list the folder for what there is'
    raise HatPluginError(f'{folder} has no option file {name!r}; {hint}')
