"""Which pictures and parts are shown: where networks differ most, or what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hat_plugin.compare import gallery, panels
from hat_plugin.compare.cost import Cost
from hat_plugin.compare.gallery import Wanted
from hat_plugin.compare.measuring import Scores, find_picture
from hat_plugin.compare.protocol import Comparison, Contender
from hat_plugin.compare.tables import Result
from hat_plugin.errors import DataError


@pytest.fixture
def truth(photos: Any) -> np.ndarray:
    return photos.small('coffee', 240, 300)


def disturbed(image: np.ndarray, top: int, left: int) -> np.ndarray:
    """40 levels added to 20x20 pixels, where that leaves them below 255."""
    changed = image.astype(int)
    changed[top : top + 20, left : left + 20] += 40
    return changed.clip(0, 255).astype(np.uint8)


def test_the_part_is_where_errors_differ(truth: np.ndarray) -> None:
    both = disturbed(truth, 10, 10)  # both are wrong here, alike
    images = {'bicubic': truth, 'a': both, 'b': disturbed(both, 150, 200), 'truth': truth}
    top, left = gallery.place_in(images)
    assert top <= 150 and top + panels.CROP[0] >= 170
    assert left <= 200 and left + panels.CROP[1] >= 220
    assert 0 <= top <= 240 - panels.CROP[0] and 0 <= left <= 300 - panels.CROP[1]
    del images['truth']
    assert gallery.place_in(images) == (top, left)


def test_of_one_network_it_is_where_it_errs_and_small_pictures_are_shown_whole(truth: np.ndarray) -> None:
    top, left = gallery.place_in({'bicubic': truth, 'a': disturbed(truth, 200, 20), 'truth': truth})
    assert top + panels.CROP[0] >= 220 and left <= 20
    small = truth[:40, :50]
    assert gallery.place_in({'bicubic': small, 'a': disturbed(small, 5, 5), 'truth': small}) == (0, 0)


def result() -> Result:
    rows = {'bicubic': [1, 1, 1, 1, 1], 'a': [5, 5, 5, 5, 5], 'b': [5, 2, 5, 6, 4.5]}
    findings = {
        who: Scores({f'p{i}': {'psnr': value} for i, value in enumerate(values)}) for who, values in rows.items()
    }
    contenders = tuple(Contender(label, {}) for label in ('a', 'b'))
    costs = {each.label: Cost(1) for each in contenders}
    return Result(Comparison('x', 'x.yml', contenders), {'set': findings}, costs, [], {'metrics': {'psnr': {}}})


def test_pictures_are_those_on_which_networks_lie_apart_whoever_is_ahead() -> None:
    assert gallery.most_different(result(), 'set') == ['p1', 'p3', 'p4']


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('a', Wanted('a')),
        ('b/a:3,40', Wanted('b/a', (3, 40))),
        ('a:', None),
        (':1,2', None),
        ('a:1', None),
        ('a:1,-2', None),
    ],
)
def test_what_users_ask_for(text: str, expected: Wanted | None) -> None:
    if expected is not None:
        assert gallery.read_wanted(text, '--show') == expected
        return
    with pytest.raises(DataError, match='write it as PICTURE:TOP,LEFT'):
        gallery.read_wanted(text, '--show')


def test_a_name_that_several_sets_have_wants_the_set_s() -> None:
    scores = Scores({'img_001': {}, 'img_002': {}})
    findings = {'Set5': {'bicubic': scores}, 'Set14': {'bicubic': Scores({'img_001': {}})}}
    assert find_picture(findings, 'img_002', '--show') == ('Set5', 'img_002')
    assert find_picture(findings, 'Set14/img_001', '--show') == ('Set14', 'img_001')
    with pytest.raises(DataError, match='write Set5/img_001 or Set14/img_001'):
        find_picture(findings, 'img_001', '--show')
    with pytest.raises(DataError, match='no such picture among 3; there are Set5/img_00'):
        find_picture(findings, 'img_003', '--show')
