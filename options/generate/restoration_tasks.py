"""What the restoration files train on and are measured by: data, metrics and published figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from hat_plugin.prepare import layout

LMDB, DISK = {'type': 'lmdb'}, {'type': 'disk'}
MARKS = "[R] read in the project's files, [F] off its results figure; none measured by this plugin"
Block = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: how files and runs call it.
        title: the first line's end.
        prepare: the commands that make its data.
        train: place and kind of the training set.
        val: data sets that validation runs on, by name.
        test: data sets that the test file runs on, by name.
        metrics: types of the metrics, by name.
        figures: a network's label -> figure to expect, with its mark.
        protocol: how figures are taken.
        floats: score unrounded.
    """

    name: str
    title: str
    prepare: str
    train: Block
    val: dict[str, Block]
    test: dict[str, Block]
    metrics: dict[str, str]
    protocol: str
    figures: dict[str, str] = field(default_factory=dict)
    floats: bool = False

    def expected(self, label: str) -> str:
        """The published figure, or what others reach."""
        if label in self.figures:
            return self.figures[label]
        others = ''.join(f'\n  {other}: {figure}' for other, figure in self.figures.items())
        return f'none published for this network; for comparison{others}'

    def val_section(self) -> Block:
        """How to measure, under `val`."""
        section: Block = {'use_image': False} if self.floats else {}
        metrics = {name: {'type': kind, 'crop_border': 0, 'better': 'higher'} for name, kind in self.metrics.items()}
        return {**section, 'metrics': metrics}


def pair_block(name: str, part: str, io: Block = LMDB, storage: str = 'lmdb') -> Block:
    """A set of pairs, as `basicsr prepare` names it."""
    roots = {'dataroot_gt': layout.pair_gt(name, part, storage), 'dataroot_lq': layout.pair_lq(name, part, storage)}
    return {'type': 'PairedCropDataset', **roots, 'io_backend': io}


VOLUME = {'psnr': 'calculate_psnr', 'ssim': 'calculate_ssim_3d'}
SIDD_VAL = {'SIDD': pair_block('SIDD', 'val')}
SIDD = Task(
    'SIDD',
    'real camera noise, SIDD-Medium sRGB',
    'basicsr prepare sidd (crops of 512, step 384; the 1280 validation blocks)',
    pair_block('SIDD', 'train'),
    SIDD_VAL,
    SIDD_VAL,
    VOLUME,
    'PSNR/SSIM of the volume, RGB, on floats',
    {'Restormer': '40.02/.960 [R]', 'NAFNet': '40.305/.9614 [R]'},
    floats=True,
)
GOPRO_TEST = {'GoPro': pair_block('GoPro', 'test')}
GOPRO = Task(
    'GoPro',
    'motion deblurring, GoPro',
    'basicsr prepare gopro (crops of 512, step 256; 2103 training and 1111 test pairs)',
    pair_block('GoPro', 'train'),
    GOPRO_TEST,
    GOPRO_TEST,
    VOLUME,
    'PSNR/SSIM of the volume, RGB, on uint8',
    {'Restormer': '32.92/.961 [F]', 'NAFNet': '33.710/.9668 [R]'},
)
GOPRO_PAIR = replace(
    GOPRO,
    title="motion deblurring on a tree of few pairs in GoPro's layout",
    prepare='basicsr prepare gopro TREE --allow-partial --sub-size 256',
)
POLYU_TEST = {'PolyU': pair_block('PolyU', 'test')}
POLYU = Task(
    'PolyU',
    'real camera noise, PolyU, scenes held out',
    'basicsr prepare pairs --name PolyU --sub-size 256 ... (datasets/README.md, Pairs)',
    pair_block('PolyU', 'train'),
    POLYU_TEST,
    POLYU_TEST,
    {'psnr': 'calculate_psnr', 'ssim': 'calculate_ssim'},
    'PSNR/SSIM per channel, RGB, on uint8, six scenes held out',
)

COLOUR = ('CBSD68', 'Kodak24', 'McMaster', 'Urban100')
GRAY = ('Set12', 'BSD68')
JPEG = ('Classic5', 'LIVE1')
COLOUR_FIGURES = {
    15: {'SwinIR': '34.42 35.34 35.61 35.13', 'Restormer': '34.40 35.47 35.61 35.13'},
    25: {'SwinIR': '31.78 32.89 33.20 32.90', 'Restormer': '31.79 33.04 33.34 32.96'},
    50: {'SwinIR': '28.56 29.79 30.22 29.82', 'Restormer': '28.60 30.01 30.30 30.02'},
}
GRAY_FIGURES = {
    15: {'SwinIR': '33.36 31.97', 'Restormer': '33.42 31.96'},
    25: {'SwinIR': '31.01 29.50', 'Restormer': '31.08 29.52'},
    50: {'SwinIR': '27.91 26.58', 'Restormer': '28.00 26.62'},
}
JPEG_FIGURES = {10: '30.27 29.86', 20: '32.52 32.25', 30: '33.73 33.69', 40: '34.52 34.67'}


def listed(sets: Iterable[str], values: str) -> str:
    """Figures with the names of their sets."""
    return ', '.join(f'{name} {value}' for name, value in zip(sets, values.split(), strict=True)) + ' [F]'


def clean_block(kind: str, root: str, io: Block, **level: Any) -> Block:
    """A set of clean pictures that are degraded as they are read."""
    return {'type': kind, 'dataroot_gt': root, 'io_backend': io, **level}


def gaussian(gray: bool, sigma: int) -> Task:
    """White Gaussian noise of one level."""
    sets, figures = (GRAY, GRAY_FIGURES) if gray else (COLOUR, COLOUR_FIGURES)
    kind = 'gray' if gray else 'color'
    tests = {name: noisy(f'{layout.ROOT}/{name}', DISK, sigma, gray) for name in sets}
    return Task(
        f'denoise_{kind}_sigma{sigma}',
        f'Gaussian noise of sigma {sigma}, {"gray" if gray else "colour"}',
        'basicsr prepare denoise; the test sets are plain folders (datasets/README.md, Denoising and JPEG)',
        noisy(layout.training_hr(layout.DENOISING_SET), LMDB, sigma, gray),
        {sets[0]: tests[sets[0]]},
        tests,
        {'psnr': 'calculate_psnr', 'ssim': 'calculate_ssim'},
        f'PSNR, {"gray" if gray else "RGB"}, on floats',
        {label: listed(sets, values) for label, values in figures[sigma].items()},
        floats=True,
    )


def noisy(root: str, io: Block, sigma: int | list[int], gray: bool = False) -> Block:
    """A set of clean pictures with Gaussian noise."""
    return clean_block('GaussianDenoisingDataset', root, io, sigma=sigma, **({'gray': True} if gray else {}))


def blind() -> Task:
    """Colour noise of any level up to 50, measured at three."""
    tests = {
        f'{name}_sigma{sigma}': noisy(f'{layout.ROOT}/{name}', DISK, sigma)
        for sigma in COLOUR_FIGURES
        for name in COLOUR
    }
    figures = [listed(COLOUR, values['Restormer']) for values in COLOUR_FIGURES.values()]
    return Task(
        'denoise_color_blind',
        'Gaussian noise of unknown sigma up to 50, colour',
        'basicsr prepare denoise; the test sets are plain folders (datasets/README.md, Denoising and JPEG)',
        noisy(layout.training_hr(layout.DENOISING_SET), LMDB, [0, 50]),
        {name: tests[name] for name in ('CBSD68_sigma15', 'CBSD68_sigma25', 'CBSD68_sigma50')},
        tests,
        {'psnr': 'calculate_psnr', 'ssim': 'calculate_ssim'},
        'PSNR, RGB, on floats',
        {f'Restormer, sigma {sigma} alone': figure for sigma, figure in zip(COLOUR_FIGURES, figures, strict=True)},
        floats=True,
    )


def jpeg(quality: int) -> Task:
    """JPEG of one quality, on the gray picture, as the papers measure it."""

    def block(root: str, io: Block) -> Block:
        return clean_block('JPEGDataset', root, io, quality=quality, gray=True)

    tests = {name: block(f'{layout.ROOT}/{name}', DISK) for name in JPEG}
    return Task(
        f'JPEG_q{quality}',
        f'JPEG artefacts of quality {quality}, gray',
        'basicsr prepare denoise; the test sets are plain folders (datasets/README.md, Denoising and JPEG)',
        block(layout.training_hr(layout.DENOISING_SET), LMDB),
        {'Classic5': tests['Classic5']},
        tests,
        {'psnr': 'calculate_psnr', 'ssim': 'calculate_ssim', 'psnrb': 'calculate_psnrb'},
        'PSNR, gray, on uint8',
        {'SwinIR': listed(JPEG, JPEG_FIGURES[quality])},
    )


PHOTOS = Task(
    'denoise_color_sigma25',
    'Gaussian noise of sigma 25, colour, on photographs of your own',
    'basicsr prepare folder PICTURES --name Photos --scale 1 --sub-size 0; McMaster is a plain folder',
    noisy(f'{layout.ROOT}/Photos/{layout.hr_name("Photos", sub_images=False)}', LMDB, 25),
    {'McMaster': noisy(f'{layout.ROOT}/McMaster', DISK, 25)},
    {'McMaster': noisy(f'{layout.ROOT}/McMaster', DISK, 25)},
    {'psnr': 'calculate_psnr', 'ssim': 'calculate_ssim'},
    'PSNR/SSIM per channel, RGB, on floats',
    floats=True,
)
