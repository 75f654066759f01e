"""denoise: clean pictures of four sets as one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from prepare.trees import SMALL, save

from hat_plugin.data.lmdb_io import LmdbReader


@pytest.fixture
def clean(flickr2k, pictures):
    """DIV2K and Flickr2K as elsewhere, BSDS500 and WED as they are unpacked, under one root."""
    images = list(pictures.values())
    for number, part in enumerate(('train', 'test', 'val')):
        save(flickr2k / 'BSR' / 'BSDS500' / 'data' / 'images' / part / f'{number}.jpg', images[number])
    for number in (1, 2):
        save(flickr2k / 'exploration_database_and_code' / 'pristine_images' / f'{number:05d}.bmp', images[number])
    return flickr2k


def test_all_four(prepare, clean, pictures, tmp_path):
    prepare('denoise', clean, '--allow-partial', *SMALL)
    folder = tmp_path / 'datasets' / 'DFWB'
    reader = LmdbReader(folder / 'DFWB_HR_sub.lmdb')
    stems = {key.rsplit('_', 1)[0] for key in reader}
    # val of BSDS500 is not among them: CBSD68 was taken from it
    assert {stem for stem in stems if stem.startswith('BSD')} == {'BSD400_0', 'BSD400_1'}
    assert {stem for stem in stems if stem.startswith('WED')} == {'WED_00001', 'WED_00002'}
    assert {'DIV2K_0001', 'Flickr2K_000001'} < stems
    assert len(stems) == 4 + 2 + 2 + 2
    assert np.array_equal(reader.image('WED_00002_s010'), pictures['0003'][12:60, 84:132])
    assert len((folder / 'meta_info_DFWBsub_GT.txt').read_text().splitlines()) == len(reader)
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert {name: part['count'] for name, part in manifest['source'].items()} == {
        'DIV2K': 4,
        'Flickr2K': 2,
        'BSD400': 2,
        'WED': 2,
    }
    assert 'made' not in prepare('denoise', clean, '--allow-partial', *SMALL).out


def test_a_choice_of_them_in_whole_pictures(prepare, clean, pictures, tmp_path):
    arguments = ('--sub-size', 0, '--min-size', 61, '--raw', '--workers', 1)
    outcome = prepare('denoise', clean, '--sets', 'WED', 'DIV2K', '--name', 'DW', '--allow-partial', *arguments)
    reader = LmdbReader(tmp_path / 'datasets' / 'DW' / 'DW_HR_raw.lmdb')
    assert reader.keys() == ['DIV2K_0001', 'DIV2K_0004']  # the others are 60 pixels wide or high
    assert np.array_equal(reader.image('DIV2K_0004'), pictures['0004'])
    assert outcome.out.count('left out') == 4


def test_crops_overlap_by_96_unless_told_otherwise(prepare, tmp_path, photos):
    big = np.tile(photos['coffee'], (2, 2, 1))[:600, :1000, ::-1]
    save(tmp_path / 'in' / 'WED' / '00001.bmp', big)
    prepare('denoise', tmp_path / 'in', '--sets', 'WED', '--allow-partial', '--workers', 1)
    reader = LmdbReader(tmp_path / 'datasets' / 'DFWB' / 'DFWB_HR_sub.lmdb')
    assert np.array_equal(reader.image('WED_00001_s002'), big[:512, 416:928])
    assert len(reader) == 2 * 3


def test_counts_are_asserted_and_what_is_missing_is_named(prepare, clean, tmp_path):
    assert '4 found, published are 800' in prepare('denoise', clean, *SMALL, code=2).err
    assert '2 found, published are 400' in prepare('denoise', clean, '--sets', 'BSD400', *SMALL, code=2).err
    assert '2 found, published are 4744' in prepare('denoise', clean, '--sets', 'WED', *SMALL, code=2).err
    message = prepare('denoise', tmp_path / 'nowhere', '--sets', 'WED', code=2).err
    assert 'WED: no folder WED or' in message
    assert '--sets' in message
