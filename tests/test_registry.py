"""What the registries hold after `import hat_plugin`, and what happens where a name is taken or a module is broken."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import basicsr.utils.registry
import pytest

import hat_plugin
from hat_plugin import registry
from hat_plugin.errors import HatPluginError

WANTED = [(kind, name, place) for kind, table in registry.TABLES.items() for name, place in table.items()]


@pytest.fixture
def archs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """BasicSR's ARCH_REGISTRY, put back as it was afterwards."""
    found = basicsr.utils.registry.ARCH_REGISTRY
    monkeypatch.setattr(found, '_obj_map', dict(found._obj_map))
    monkeypatch.setattr(registry, '_failure', None)
    return found


@pytest.fixture
def plugin_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with the classes Good and Wrong; Wrong's own name is another."""
    (tmp_path / 'toy_archs.py').write_text('class Good: pass\nclass Other: pass\nWrong = Other\n')
    monkeypatch.syspath_prepend(tmp_path)
    return 'toy_archs'


def _want(monkeypatch: pytest.MonkeyPatch, **archs: str) -> None:
    monkeypatch.setattr(registry, 'TABLES', {'ARCH_REGISTRY': archs})


@pytest.mark.parametrize(('kind', 'name', 'place'), WANTED, ids=[name for _, name, _ in WANTED])
def test_each_name_resolves_to_our_object(kind: str, name: str, place: str) -> None:
    module, attribute = place.split(':')
    ours = getattr(importlib.import_module(module), attribute)
    assert getattr(basicsr.utils.registry, kind).get(name) is ours


def test_all_names_are_ours_and_nothing_failed() -> None:
    assert registry.failure() is None
    registry.require_registered()
    assert all(holder.ours and holder.file for holder in registry.holders())
    assert len(registry.holders()) == len(WANTED)


def test_registering_again_changes_nothing_and_warns_of_nothing(archs: Any) -> None:
    before = dict(list(archs))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hat_plugin.register()
    assert dict(list(archs)) == before


def test_a_name_held_by_another_is_left_alone_and_told(
    archs: Any, plugin_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Good:
        pass

    archs.register(Good)
    _want(monkeypatch, Good=f'{plugin_module}:Good')
    with pytest.warns(RuntimeWarning, match=r"'Good' is held by .*test_registry.*Good .*test_registry\.py"):
        registry.register()
    assert archs.get('Good') is Good
    (holder,) = registry.holders()
    assert not holder.ours
    assert holder.held_by is not None
    assert holder.held_by.endswith('.Good')
    assert holder.file == __file__


def test_a_missing_name_does_not_fall_back_to_basicsr_s_suffix(
    archs: Any, plugin_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Good:
        pass

    archs.register(Good, suffix='basicsr')
    _want(monkeypatch, Good=f'{plugin_module}:Good')
    registry.register()
    assert archs.get('Good').__module__ == plugin_module


@pytest.mark.parametrize(
    ('place', 'error'),
    [
        ('toy_archs:Absent', AttributeError),
        ('no_such_module:Thing', ModuleNotFoundError),
        ('toy_archs:Wrong', HatPluginError),
    ],
)
def test_if_it_raises_the_registry_is_unchanged(
    archs: Any, plugin_module: str, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception]
) -> None:
    before = dict(list(archs))
    _want(monkeypatch, Good=f'{plugin_module}:Good', Wrong=place)
    with pytest.raises(error):
        registry.register()
    assert dict(list(archs)) == before


def test_a_failure_is_warned_about_once_and_raised_on_demand(archs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _want(monkeypatch, Thing='no_such_module:Thing')
    with pytest.warns(RuntimeWarning, match='basicsr doctor') as caught:
        registry.try_register()
    assert len(caught) == 1
    assert isinstance(registry.failure(), ModuleNotFoundError)
    with pytest.raises(HatPluginError, match='no_such_module') as raised:
        registry.require_registered()
    assert raised.value.__cause__ is registry.failure()


def test_basicsr_builds_our_network_from_an_option_file_s_block() -> None:
    from basicsr.archs import build_network

    sizes = {'window_size': 4, 'embed_dim': 8, 'squeeze_factor': 2, 'depths': [1], 'num_heads': [2]}
    sizes = {'window_size': 4, 'embed_dim': 8, 'squeeze_factor': 2, 'depths': [1], 'num_heads': [2]}
    net = build_network({'type': 'HAT', 'upscale': 2, 'upsampler': 'pixelshuffle', **sizes})
    assert type(net).__module__ == 'hat_plugin.archs.hat_arch'
