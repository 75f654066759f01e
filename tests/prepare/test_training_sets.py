"""div2k, flickr2k, df2k and folder, from published trees to LMDBs and folders."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from prepare.trees import SMALL, save

from hat_plugin.data.bicubic import imresize
from hat_plugin.data.lmdb_io import LmdbReader
from hat_plugin.prepare.cutting import positions


def basicsr_pairs(folder, name, scale, ending='_sub.lmdb'):
    from basicsr.data.paired_image_dataset import PairedImageDataset

    return PairedImageDataset(
        {
            'dataroot_gt': str(folder / f'{name}_HR{ending}'),
            'dataroot_lq': str(folder / f'{name}_bicx{scale}{ending}'),
            'io_backend': {'type': 'lmdb' if ending.endswith('lmdb') else 'disk'},
            'scale': scale,
            'phase': 'val',
        }
    )


@pytest.mark.parametrize(
    ('side', 'expected'), [(48, [0]), (40, [0]), (72, [0, 24]), (80, [0, 24, 32]), (96, [0, 24, 48]), (49, [0, 1])]
)
def test_where_sub_images_begin(side, expected):
    assert positions(side, 48, 24, 0) == expected


def test_the_threshold_keeps_a_sliver_from_becoming_a_sub_image():
    assert positions(50, 48, 24, 2) == [0]
    assert positions(51, 48, 24, 2) == [0, 3]


def test_div2k(prepare, div2k, tmp_path, pictures):
    outcome = prepare('div2k', div2k, '--allow-partial', '--scale', 2, 3, 4, *SMALL)
    folder = tmp_path / 'datasets' / 'DIV2K'
    names = ['DIV2K_HR_sub.lmdb', *(f'DIV2K_bicx{scale}_sub.lmdb' for scale in (2, 3, 4))]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, 'manifest.json', 'meta_info_DIV2Ksub_GT.txt', '.basicsr.lock']
    )
    hr = LmdbReader(folder / names[0])
    # (rows - 48) / 24 + 1 times (columns - 48) / 24 + 1, a last one at the edge where it does not come out even
    assert len(hr) == 3 * 4 + 2 * 2 + 2 * 5 + 4 * 3
    assert np.array_equal(hr.image('0001_s001'), pictures['0001'][:48, :48])
    assert np.array_equal(hr.image('0001_s006'), pictures['0001'][24:72, 24:72])
    assert np.array_equal(hr.image('0003_s010'), pictures['0003'][12:60, 84:132])
    for scale in (2, 3, 4):
        low = LmdbReader(folder / names[scale - 1])
        assert low.keys() == hr.keys()
        whole = imresize(pictures['0001'], 1 / scale)
        expected = whole if scale == 3 else whole // 2  # published for 2 and 4
        start, size = 24 // scale, 48 // scale
        assert np.array_equal(low.image('0001_s006'), expected[start : start + size, start : start + size])
    lines = (folder / 'meta_info_DIV2Ksub_GT.txt').read_text().splitlines()
    assert lines[0] == '0001_s001.png (48,48,3)'
    assert len(lines) == len(hr)
    manifest = json.loads((folder / 'manifest.json').read_text())
    kernels = {name: entry['kernel'] for name, entry in manifest['outputs'].items()}
    assert kernels[names[1]] == 'published low-resolution files'
    assert kernels[names[2]].startswith('MATLAB')
    assert {entry['count'] for entry in manifest['outputs'].values()} == {len(hr)}
    assert str(folder / names[0]) in outcome.out


def test_basicsr_reads_what_was_prepared(prepare, div2k, tmp_path, pictures):
    prepare('div2k', div2k, '--allow-partial', '--scale', 4, '--lr', 'bicubic', *SMALL)
    dataset = basicsr_pairs(tmp_path / 'datasets' / 'DIV2K', 'DIV2K', 4)
    pair = dataset[5]
    assert pair['gt_path'] == '0001_s006'
    gt = np.rint(pair['gt'].numpy().transpose(1, 2, 0)[..., ::-1] * 255)
    assert np.array_equal(gt, pictures['0001'][24:72, 24:72])
    assert pair['lq'].shape == (3, 12, 12)


def test_another_scale_is_added_without_doing_the_first_again(prepare, div2k, tmp_path):
    prepare('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    folder = tmp_path / 'datasets' / 'DIV2K'
    before = (folder / 'DIV2K_HR_sub.lmdb' / 'data.mdb').stat().st_mtime_ns
    outcome = prepare('div2k', div2k, '--allow-partial', '--scale', 2, 4, *SMALL)
    assert 'DIV2K_HR_sub.lmdb: was there' in outcome.out
    assert 'DIV2K_bicx2_sub.lmdb: made' in outcome.out
    assert (folder / 'DIV2K_HR_sub.lmdb' / 'data.mdb').stat().st_mtime_ns == before
    assert set(json.loads((folder / 'manifest.json').read_text())['outputs']) == {
        'DIV2K_HR_sub.lmdb',
        'DIV2K_bicx2_sub.lmdb',
        'DIV2K_bicx4_sub.lmdb',
    }
    again = prepare('div2k', div2k, '--allow-partial', '--scale', 2, 4, *SMALL)
    assert 'made' not in again.out


def test_folders_raw_and_many_workers_hold_the_same_pixels(prepare, div2k, tmp_path):
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL[:-1])
    prepare(*arguments, 1)
    prepare(*arguments, 3, '--no-lmdb')
    prepare(*arguments, 2, '--raw')
    folder = tmp_path / 'datasets' / 'DIV2K'
    for kind in ('HR', 'bicx4'):
        reader, raw = LmdbReader(folder / f'DIV2K_{kind}_sub.lmdb'), LmdbReader(folder / f'DIV2K_{kind}_sub_raw.lmdb')
        assert raw.kind == 'raw'
        assert len(list((folder / f'DIV2K_{kind}_sub').iterdir())) == len(reader) == len(raw)
        for key in reader:
            assert (folder / f'DIV2K_{kind}_sub' / f'{key}.png').read_bytes() == reader.read(key)
            assert np.array_equal(reader.image(key), raw.image(key))
    assert len(basicsr_pairs(folder, 'DIV2K', 4, '_sub')) == len(reader)


def test_df2k(prepare, flickr2k, tmp_path):
    prepare('df2k', flickr2k, '--allow-partial', '--scale', 4, *SMALL)
    keys = LmdbReader(tmp_path / 'datasets' / 'DF2K' / 'DF2K_HR_sub.lmdb').keys()
    assert keys == sorted(keys)
    assert {key.split('_')[0] for key in keys} == {'0001', '0002', '0003', '0004', '000001', '000002'}
    assert (tmp_path / 'datasets' / 'DF2K' / 'meta_info_DF2Ksub_GT.txt').exists()


def test_df2k_from_two_places_and_flickr2k_alone(prepare, flickr2k, tmp_path):
    (flickr2k / 'Flickr2K').rename(tmp_path / 'Flickr2K')
    prepare('df2k', flickr2k, tmp_path, '--allow-partial', '--scale', 2, *SMALL)
    prepare('flickr2k', tmp_path, '--allow-partial', '--scale', 2, *SMALL)
    assert len(LmdbReader(tmp_path / 'datasets' / 'Flickr2K' / 'Flickr2K_HR_sub.lmdb')) == 3 * 4 + 2 * 2


def test_counts_are_asserted(prepare, div2k, flickr2k):
    assert '4 pictures, published are 800' in prepare('div2k', div2k, *SMALL, code=2).err
    assert '2 pictures, published are 2650' in prepare('flickr2k', flickr2k, *SMALL, code=2).err


def test_what_is_missing_is_named(prepare, div2k, flickr2k, tmp_path):
    assert 'DIV2K_train_HR' in prepare('div2k', tmp_path / 'nowhere', code=2).err
    message = prepare('div2k', div2k, '--allow-partial', '--scale', 3, '--lr', 'published', *SMALL, code=2).err
    assert 'no published x3 of 0001' in message
    (div2k / 'DIV2K_train_LR_bicubic' / 'X4' / '0002x4.png').unlink()
    message = prepare('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL, code=2).err
    assert '1 of 4 low-resolution files are missing, the first for 0002' in message
    (div2k / 'DIV2K_train_LR_bicubic' / 'X2').rename(div2k / 'elsewhere')
    assert (
        'one of DIV2K and Flickr2K only'
        in prepare('df2k', flickr2k, '--allow-partial', '--scale', 2, *SMALL, code=2).err
    )


def test_a_low_resolution_file_of_another_size_is_found_before_anything_is_begun(prepare, div2k, tmp_path, pictures):
    save(div2k / 'DIV2K_train_LR_bicubic' / 'X4' / '0002x4.png', pictures['0001'][:20, :20])
    message = prepare('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL, code=2).err
    assert '0002x4.png: 20x20 is not the x4' in message
    assert 'nothing was begun' in message
    assert not list((tmp_path / 'datasets' / 'DIV2K').glob('.*.part'))


def test_bad_pictures_are_all_named_and_the_rest_is_kept(prepare, div2k, tmp_path, pictures):
    bad = [div2k / 'DIV2K_train_HR' / f'{stem}.png' for stem in ('0002', '0004')]
    sound = [path.read_bytes() for path in bad]
    for path, content in zip(bad, sound, strict=True):
        path.write_bytes(content[: len(content) // 2])
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    message = prepare(*arguments, code=2).err
    assert '2 of 4 pictures are bad' in message
    assert all(str(path) in message for path in bad)
    folder = tmp_path / 'datasets' / 'DIV2K'
    assert not (folder / 'DIV2K_HR_sub.lmdb').exists()
    outcome = prepare(*arguments, '--skip-bad')
    assert outcome.out.count('bad, left out') == 2
    assert {key[:4] for key in LmdbReader(folder / 'DIV2K_HR_sub.lmdb')} == {'0001', '0003'}
    assert len(json.loads((folder / 'manifest.json').read_text())['bad']) == 2
    for path, content in zip(bad, sound, strict=True):
        path.write_bytes(content)
    assert '--overwrite' in prepare(*arguments, code=2).err
    prepare(*arguments, '--overwrite')
    assert len({key[:4] for key in LmdbReader(folder / 'DIV2K_HR_sub.lmdb')}) == 4


def test_what_lies_in_the_way_is_not_overwritten_unasked(prepare, div2k, tmp_path):
    folder = tmp_path / 'datasets' / 'DIV2K'
    (folder / 'DIV2K_HR_sub.lmdb').mkdir(parents=True)
    (folder / 'DIV2K_HR_sub.lmdb' / 'mine.txt').write_text('precious')
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    assert 'already there: DIV2K_HR_sub.lmdb' in prepare(*arguments, code=2).err
    assert (folder / 'DIV2K_HR_sub.lmdb' / 'mine.txt').read_text() == 'precious'
    prepare(*arguments, '--overwrite')
    assert len(LmdbReader(folder / 'DIV2K_HR_sub.lmdb')) == 38


def test_a_damaged_output_is_not_taken_for_done(prepare, div2k, tmp_path):
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    prepare(*arguments)
    os.truncate(tmp_path / 'datasets' / 'DIV2K' / 'DIV2K_bicx4_sub.lmdb' / 'data.mdb', 9000)
    assert 'already there: DIV2K_bicx4_sub.lmdb' in prepare(*arguments, code=2).err
    prepare(*arguments, '--overwrite')
    assert len(LmdbReader(tmp_path / 'datasets' / 'DIV2K' / 'DIV2K_bicx4_sub.lmdb')) == 38


def test_folder_of_one_s_own(prepare, tmp_path, photos):
    source = tmp_path / 'holiday pictures'
    coffee = photos.small('coffee', 101, 131)[..., ::-1]
    save(source / 'day 1' / 'IMG 1.v2.png', coffee)
    save(source / 'gray.png', coffee[..., 0])
    save(source / 'deep.png', coffee.astype(np.uint16) * 200)
    save(source / 'tiny.png', coffee[:20, :20])
    save(source / 'opaque.png', np.dstack([coffee, np.full(coffee.shape[:2], 255, np.uint8)]))
    outcome = prepare('folder', source, '--name', 'mine', '--scale', 4, *SMALL)
    assert 'left out' in outcome.out
    assert 'tiny.png' in outcome.out
    reader = LmdbReader(tmp_path / 'datasets' / 'mine' / 'mine_HR_sub.lmdb')
    stems = {key.rsplit('_', 1)[0] for key in reader}
    odd = next(stem for stem in stems if 'IMG' in stem)
    assert stems == {'gray', 'deep', 'opaque', odd}
    assert not set(odd) & set(' .')
    assert reader.shape('gray_s001') == (48, 48, 1)
    assert reader.image('deep_s001').dtype == np.uint16
    low = LmdbReader(tmp_path / 'datasets' / 'mine' / 'mine_bicx4_sub.lmdb')
    expected = imresize(coffee[:96, :120].astype(np.uint16) * 200, 1 / 4)[:12, :12]  # 101x131 cropped to 96x120
    assert np.array_equal(low.image('deep_s001'), expected)
    reader.close()
    low.close()  # BasicSR cannot read what this process holds open
    assert basicsr_pairs(tmp_path / 'datasets' / 'mine', 'mine', 4)[0]['gt'].shape == (3, 48, 48)
    renamed = json.loads((tmp_path / 'datasets' / 'mine' / 'manifest.json').read_text())['source']['renamed']
    assert renamed == {'day 1/IMG 1.v2.png': odd}


def test_whole_pictures(prepare, div2k, tmp_path, pictures):
    source = div2k / 'DIV2K_train_HR'
    prepare('folder', source, '--name', 'whole', '--scale', 4, '--sub-size', 0, '--min-size', 24, '--workers', 1)
    reader = LmdbReader(tmp_path / 'datasets' / 'whole' / 'whole_HR.lmdb')
    assert reader.keys() == list(pictures)
    assert np.array_equal(reader.image('0003'), pictures['0003'])
    assert LmdbReader(tmp_path / 'datasets' / 'whole' / 'whole_bicx4.lmdb').shape('0003') == (15, 33, 3)
    assert (tmp_path / 'datasets' / 'whole' / 'meta_info_whole_GT.txt').read_text().startswith('0001.png (96,120,3)\n')


def test_ground_truth_alone(prepare, tmp_path, photos):
    clean = photos.small('coffee', 53, 41)[..., ::-1]
    save(tmp_path / 'in' / 'a.png', clean)
    whole = ('--sub-size', 0, '--min-size', 0, '--workers', 1)
    prepare('folder', tmp_path / 'in', '--name', 'Photos', '--scale', 1, *whole)
    folder = tmp_path / 'datasets' / 'Photos'
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != '.') == [
        'Photos_HR.lmdb', 'manifest.json', 'meta_info_Photos_GT.txt',
    ]  # fmt: skip
    assert np.array_equal(LmdbReader(folder / 'Photos_HR.lmdb').image('a'), clean)  # not cropped to multiples of 12
    assert 'made' not in prepare('folder', tmp_path / 'in', '--name', 'Photos', '--scale', 1, *whole).out
    assert "'1' is no whole number from 2" in prepare('div2k', tmp_path / 'in', '--scale', 1, code=2).err


def test_transparency_is_refused_or_dropped(prepare, tmp_path, photos):
    image = photos.small('coffee', 96, 96)
    save(tmp_path / 'in' / 'a.png', np.dstack([image, image[..., 0]]))
    save(tmp_path / 'in' / 'b.png', image)
    arguments = ('folder', tmp_path / 'in', '--name', 'x', '--scale', 2, *SMALL)
    assert 'a.png: has transparent pixels' in prepare(*arguments, code=2).err
    prepare(*arguments, '--drop-alpha')
    assert LmdbReader(tmp_path / 'datasets' / 'x' / 'x_HR_sub.lmdb').shape('a_s001') == (48, 48, 3)


def test_a_list_of_pictures(prepare, div2k, tmp_path):
    listed = tmp_path / 'list.txt'
    source = div2k / 'DIV2K_train_HR'
    arguments = ('folder', source, '--name', 'some', '--list', listed, '--scale', 2, *SMALL)
    (source / 'way out.png').symlink_to(div2k / 'DIV2K_train_LR_bicubic' / 'X2' / '0001x2.png')
    for line, said in {
        '../secret.png': 'leads out of',
        '/etc/passwd': 'leads out of',
        'way out.png (1,2,3)': 'leads out of',
        'sub/../0001.png': 'leads out of',
        '9999.png': 'is not there',
        '0003.png': 'is listed twice',
    }.items():
        listed.write_text(f'0003.png (60,132,3)\n0001.png\n{line}\n')
        assert said in prepare(*arguments, code=2).err, line
    listed.write_text('0003.png (60,132,3)\n0001.png\n')
    prepare(*arguments)
    assert {key[:4] for key in LmdbReader(tmp_path / 'datasets' / 'some' / 'some_HR_sub.lmdb')} == {'0001', '0003'}


@pytest.mark.parametrize('name', ['../x', 'a/b', '', '.hidden', 'two words'])
def test_names_of_sets(prepare, div2k, name):
    message = prepare('folder', div2k / 'DIV2K_train_HR', f'--name={name or "."}', *SMALL, code=2).err
    assert 'cannot name a data set' in message


def test_a_picture_in_place_of_a_folder_is_named(prepare, div2k):
    picture = div2k / 'DIV2K_train_HR' / '0001.png'
    assert '0001.png: is a file, not a folder' in prepare('folder', picture, code=2).err
    assert '0001.png: is a file, not a folder' in prepare('benchmark', picture, code=2).err


def test_what_does_not_go_together(prepare, div2k, tmp_path, pictures):
    source = div2k / 'DIV2K_train_HR'
    message = prepare('folder', source, '--name', 'x', '--scale', 5, *SMALL, code=2).err
    assert 'must be multiples of the scale 5' in message
    save(tmp_path / 'datasets' / 'y' / '1.png', pictures['0001'])
    assert 'among the pictures' in prepare('folder', tmp_path / 'datasets' / 'y', *SMALL, code=2).err
    save(source / '0001.bmp', pictures['0001'])
    assert (
        '0001.bmp and 0001.png would both be called 0001'
        in prepare('folder', source, '--name', 'x', *SMALL, code=2).err
    )
    assert 'have the same name' in prepare('div2k', div2k, '--allow-partial', *SMALL, code=2).err


def test_no_room_is_said_before_the_work(prepare, div2k, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda folder: type('Usage', (), {'free': 1000})())
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    assert '0.1 MB are needed, 0.0 MB are free' in prepare(*arguments, code=2).err
    prepare(*arguments, '--no-room-check')


def test_jpegs_are_turned_as_their_exif_says(prepare, tmp_path, photos):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    (tmp_path / 'in').mkdir()
    Image.fromarray(photos.small('coffee', 60, 96)).save(tmp_path / 'in' / 'a.jpg', exif=exif, quality=95)
    prepare('folder', tmp_path / 'in', '--name', 'x', '--scale', 2, '--sub-size', 0, '--min-size', 0, '--workers', 1)
    assert LmdbReader(tmp_path / 'datasets' / 'x' / 'x_HR.lmdb').shape('a') == (96, 60, 3)


def test_compress_level_is_heeded(prepare, div2k, tmp_path):
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL, '--compress-level', 9)
    prepare(*arguments)
    path = tmp_path / 'datasets' / 'DIV2K' / 'DIV2K_HR_sub.lmdb'
    assert (path / 'meta_info.txt').read_text().splitlines()[0] == '0001_s001.png (48,48,3) 9'
    image = LmdbReader(path).image('0001_s001')
    assert (
        LmdbReader(path).read('0001_s001') == cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    )


def test_the_smallest_side_counts_after_the_crop(prepare, tmp_path, photos):
    save(tmp_path / 'in' / 'a.png', photos.small('coffee', 96, 59)[..., ::-1])
    save(tmp_path / 'in' / 'b.png', photos.small('coffee', 96, 60)[..., ::-1])
    arguments = ('--sub-size', 0, '--min-size', 49, '--scale', 2, '--workers', 1)
    outcome = prepare('folder', tmp_path / 'in', '--name', 'x', *arguments)
    assert 'a.png: 59x96, cropped 48x96, is too small' in outcome.out
    assert LmdbReader(tmp_path / 'datasets' / 'x' / 'x_HR.lmdb').keys() == ['b']
    assert 'a.png: 59x96' in prepare('folder', tmp_path / 'in', '--name', 'x', *arguments).out


def test_a_picture_of_as_many_bytes_in_the_place_of_another_is_noticed(prepare, tmp_path, photos):
    path = tmp_path / 'in' / 'a.bmp'
    save(path, photos.small('coffee', 96, 96)[..., ::-1])
    arguments = ('folder', tmp_path / 'in', '--name', 'x', '--scale', 2, *SMALL)
    prepare(*arguments)
    image = photos.small('rocket', 96, 96)[..., ::-1]
    save(path, image)
    assert '--overwrite' in prepare(*arguments, code=2).err
    prepare(*arguments, '--overwrite')
    assert np.array_equal(LmdbReader(tmp_path / 'datasets/x/x_HR_sub.lmdb').image('a_s001'), image[:48, :48])


def test_overwriting_makes_even_what_seems_to_be_there(prepare, div2k, tmp_path):
    arguments = ('div2k', div2k, '--allow-partial', '--scale', 4, *SMALL)
    prepare(*arguments)
    leftover = tmp_path / 'datasets' / 'DIV2K' / '.manifest.json.0123abcd.tmp'
    leftover.write_text('{')
    outcome = prepare(*arguments, '--overwrite')
    assert 'DIV2K_HR_sub.lmdb: made' in outcome.out
    assert 'was there' not in outcome.out
    assert not leftover.exists()
