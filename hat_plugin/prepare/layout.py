"""Where prepared data lies, and under which names: the one list that `basicsr prepare` and the option files share.

Folders are named as HAT's published option files name them, which find them once `.lmdb` is added (or with --no-lmdb).
The list of images lies with its data, whereas those files look for it in the published code
(`meta_info_file: hat/data/meta_info/meta_info_DF2Ksub_GT.txt`): there the option is to be changed::

    datasets/
      DF2K/                                  the same for DIV2K, Flickr2K and any name given to `prepare folder`
        DF2K_HR_sub.lmdb/                    sub-images of 480x480, PNG; key 0001_s001
        DF2K_bicx2_sub.lmdb/  ..x3..  ..x4.. the same places at 1/scale
        DF2K_HR_sub/  DF2K_bicx4_sub/        instead of the LMDBs with --no-lmdb
        DF2K_HR_sub_raw.lmdb/  ..            with --raw: pixels as they are, read by crops
        meta_info_DF2Ksub_GT.txt             one line an image: 0001_s001.png (480,480,3)
        manifest.json
      Set5/  Set14/  BSDS100/  urban100/  manga109/
        GTmod4/  LRbicx4/                    folders of PNGs, the same file name in both; one pair a scale
        manifest.json
      SIDD/  GoPro/                          named as in NAFNet's published option files, `.lmdb` included
        train/                               crops of 512x512; the same key in both
          gt_crops.lmdb/  input_crops.lmdb/  SIDD;  GoPro: sharp_crops.lmdb/  blur_crops.lmdb/
          manifest.json
        val/                                 SIDD: the validation blocks, gt_crops.lmdb/  input_crops.lmdb/
        test/                                GoPro: whole frames, target.lmdb/  input.lmdb/
        benchmark/input/                     SIDD: the benchmark's noisy blocks as PNGs, to be restored
      NAME/                                  of `prepare pairs --name NAME`
        train/  test/                        target_crops.lmdb/  input_crops.lmdb/;  target.lmdb/  input.lmdb/
      DFWB/                                  of `prepare denoise`
        DFWB_HR_sub.lmdb/                    clean crops of 512x512
        meta_info_DFWBsub_GT.txt  manifest.json
      imagenet/
        train/                               the published folders, where they are (or a link to them)
        train_map.txt                        the pictures that can be used, one line each
        train.lmdb/                          only with --lmdb
        manifest.json
"""

from __future__ import annotations

ROOT = 'datasets'
"""Relative to the folder in which `basicsr` is run, as in BasicSR's option files."""

SCALES = (2, 3, 4)
SUB_IMAGE_SIZE = 480
SUB_IMAGE_STEP = 240
SUB_IMAGE_THRESHOLD = 0

TRAINING_SETS = ('DIV2K', 'Flickr2K', 'DF2K')

BENCHMARKS = {'Set5': 'Set5', 'Set14': 'Set14', 'BSD100': 'BSDS100', 'Urban100': 'urban100', 'Manga109': 'manga109'}
"""A benchmark's name -> its folder's name, spelt as HAT's published option files spell it."""

PAIRS = {
    ('SIDD', 'train'): ('gt_crops', 'input_crops'),
    ('SIDD', 'val'): ('gt_crops', 'input_crops'),
    ('GoPro', 'train'): ('sharp_crops', 'blur_crops'),
    ('GoPro', 'test'): ('target', 'input'),
}
"""(Data set, part) -> names of ground truth and input, spelt as NAFNet's published option files spell them."""

OTHER_PAIRS = {'train': ('target_crops', 'input_crops'), 'test': ('target', 'input')}
"""The same for all other sets of pairs."""

DENOISING_SET = 'DFWB'
"""DIV2K, Flickr2K, WED and BSD: how Restormer's files call the clean pictures for noise and JPEG training."""

MANIFEST = 'manifest.json'
IMAGENET_TRAIN = f'{ROOT}/imagenet/train'
IMAGENET_MAP = f'{ROOT}/imagenet/train_map.txt'
IMAGENET_LMDB = f'{ROOT}/imagenet/train.lmdb'


def ending(storage: str) -> str:
    """The ending of a folder's name.

    Args:
        storage: 'lmdb' (PNGs in an LMDB, as BasicSR reads it), 'disk' (a folder of PNGs) or 'raw' (pixels in an LMDB).

    Raises:
        KeyError: it is none of these.
    """
    return {'lmdb': '.lmdb', 'disk': '', 'raw': '_raw.lmdb'}[storage]


def hr_name(name: str, storage: str = 'lmdb', *, sub_images: bool = True) -> str:
    """Folder name of the ground truth: DF2K_HR_sub.lmdb; without sub-images DF2K_HR.lmdb."""
    return f'{name}_HR{"_sub" if sub_images else ""}{ending(storage)}'


def lr_name(name: str, scale: int, storage: str = 'lmdb', *, sub_images: bool = True) -> str:
    """Folder name of the low-resolution images: DF2K_bicx4_sub.lmdb; without sub-images DF2K_bicx4.lmdb."""
    return f'{name}_bicx{scale}{"_sub" if sub_images else ""}{ending(storage)}'


def meta_info_name(name: str, *, sub_images: bool = True) -> str:
    """File name of the list of the ground truth's images: meta_info_DF2Ksub_GT.txt."""
    return f'meta_info_{name}{"sub" if sub_images else ""}_GT.txt'


def pair_names(name: str, part: str, storage: str = 'lmdb', *, sub_images: bool = True) -> tuple[str, str]:
    """Folder names of ground truth and input of a set of pairs.

    Args:
        name: of the data set.
        part: 'train' and so on; see `PAIRS` and `OTHER_PAIRS`.
        storage: see `ending`.
        sub_images: whether pictures are cut; whole ones are not called crops.
    """
    gt, lq = PAIRS.get((name, part)) or OTHER_PAIRS[part]
    if not sub_images:
        gt, lq = gt.removesuffix('_crops'), lq.removesuffix('_crops')
    return f'{gt}{ending(storage)}', f'{lq}{ending(storage)}'


def benchmark_gt_name(scale: int) -> str:
    """Folder name of a benchmark's ground truth, cropped to a multiple of the scale: GTmod4."""
    return f'GTmod{scale}'


def benchmark_lr_name(scale: int) -> str:
    """Folder name of a benchmark's low-resolution images: LRbicx4."""
    return f'LRbicx{scale}'


def training_hr(name: str, storage: str = 'lmdb') -> str:
    """dataroot_gt of a training set, with forward slashes: datasets/DF2K/DF2K_HR_sub.lmdb."""
    return f'{ROOT}/{name}/{hr_name(name, storage)}'


def training_lr(name: str, scale: int, storage: str = 'lmdb') -> str:
    """dataroot_lq of a training set: datasets/DF2K/DF2K_bicx4_sub.lmdb."""
    return f'{ROOT}/{name}/{lr_name(name, scale, storage)}'


def training_meta_info(name: str) -> str:
    """meta_info_file of a training set: datasets/DF2K/meta_info_DF2Ksub_GT.txt."""
    return f'{ROOT}/{name}/{meta_info_name(name)}'


def benchmark_gt(name: str, scale: int) -> str:
    """dataroot_gt of a benchmark, by its usual name ('Urban100'): datasets/urban100/GTmod4."""
    return f'{ROOT}/{BENCHMARKS[name]}/{benchmark_gt_name(scale)}'


def benchmark_lr(name: str, scale: int) -> str:
    """dataroot_lq of a benchmark: datasets/urban100/LRbicx4."""
    return f'{ROOT}/{BENCHMARKS[name]}/{benchmark_lr_name(scale)}'


def pair_gt(name: str, part: str, storage: str = 'lmdb') -> str:
    """dataroot_gt of a set of pairs: datasets/SIDD/train/gt_crops.lmdb."""
    return f'{ROOT}/{name}/{part}/{pair_names(name, part, storage)[0]}'


def pair_lq(name: str, part: str, storage: str = 'lmdb') -> str:
    """dataroot_lq of a set of pairs: datasets/GoPro/test/input.lmdb."""
    return f'{ROOT}/{name}/{part}/{pair_names(name, part, storage)[1]}'
