"""What is trained and tested, and how: the networks, published figures and recipes behind the option files.

Marks behind a figure: [R] read in the project's own files, [F] read off its results figure, [K] from the literature,
not checked. None of these figures was measured by this plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

SETS = ('Set5', 'Set14', 'BSD100', 'Urban100', 'Manga109')
MARKS = "[R] read in the project's files, [F] off its results figure, [K] literature; none measured by this plugin"


BATCH = 32


@dataclass(frozen=True)
class Network:
    """A row of the published tables.

    Attributes:
        label: how files and runs call it.
        millions: parameters at x4, and MACs of a 64x64 input at x4 in units of 10**9.
        options: its lines under ``network_g``, but for the scale.
        figures: scale -> published PSNR on `SETS`, and the mark.
        ssim: scale -> published SSIM on `SETS`.
    """

    label: str
    millions: str
    options: str
    figures: dict[int, tuple[str, str]]
    ssim: dict[int, str] = field(default_factory=dict)


def hat_lines(
    embed_dim: int, compress: int, squeeze: int, depths: Sequence[int], upsampler: str = 'pixelshuffle'
) -> str:
    """``network_g`` of a HAT."""
    return f"""\
  in_chans: 3
  window_size: 16
  compress_ratio: {compress}
  squeeze_factor: {squeeze}
  conv_scale: 0.01
  overlap_ratio: 0.5
  img_range: 1.0
  depths: {list(depths)}
  embed_dim: {embed_dim}
  num_heads: {[6] * len(depths)}
  mlp_ratio: 2
  upsampler: {upsampler}
  resi_connection: 1conv"""


HAT = Network(
    'HAT',
    '20.8 M parameters, 103.9 G MACs',
    hat_lines(180, 3, 30, [6] * 6),
    {
        2: ('38.63 34.86 32.62 34.45 40.26', 'F'),
        3: ('35.07 31.08 29.54 30.23 35.53', 'F'),
        4: ('33.04 29.23 28.00 27.97 32.48', 'F'),
    },
    {
        2: '.9630 .9274 .9053 .9466 .9809',
        3: '.9329 .8555 .8167 .8896 .9552',
        4: '.9056 .7973 .7517 .8368 .9292',
    },
)
HAT_S = Network(
    'HAT-S',
    '9.6 M parameters, 54.6 G MACs',
    hat_lines(144, 24, 24, [6] * 6),
    {
        2: ('38.58 34.70 32.59 34.31 40.14', 'K'),
        3: ('35.01 31.05 29.50 30.15 35.40', 'K'),
        4: ('32.92 29.15 27.97 27.87 32.35', 'R'),
    },
)
HAT_L = Network('HAT-L', '40.8 M parameters, 203.0 G MACs', hat_lines(180, 3, 30, [6] * 12), {})
SWINIR = Network(
    'SwinIR',
    '11.9 M parameters, 53.6 G MACs',
    """\
  in_chans: 3
  img_size: 64
  window_size: 8
  img_range: 1.0
  depths: [6, 6, 6, 6, 6, 6]
  embed_dim: 180
  num_heads: [6, 6, 6, 6, 6, 6]
  mlp_ratio: 2
  upsampler: pixelshuffle
  resi_connection: 1conv""",
    {
        2: ('38.42 34.46 32.53 33.81 39.92', 'F'),
        3: ('34.97 30.93 29.46 29.75 35.12', 'F'),
        4: ('32.92 29.09 27.92 27.45 32.03', 'F'),
    },
    {
        2: '.9623 .9250 .9041 .9427 .9797',
        3: '.9318 .8534 .8145 .8826 .9537',
        4: '.9044 .7950 .7489 .8254 .9260',
    },
)
HAT_LIGHT = Network(
    'HAT-light',
    '1.25 M parameters, 8.4 G MACs',
    hat_lines(60, 24, 20, [6] * 4, upsampler='pixelshuffledirect'),
    {},
)
# ImageNet-pretrained, fine-tuned on DF2K: PSNR, as far as it is known.
PRETRAINED = {
    ('HAT', 2): 'Urban100 34.81, Manga109 40.71 [F]',
    ('HAT', 3): 'Urban100 30.70, Manga109 35.84 [F]',
    ('HAT', 4): 'Urban100 28.37, Manga109 32.87 [F]',
    ('HAT-L', 2): 'Urban100 35.09 [R]',
    ('HAT-L', 3): 'Urban100 30.92 [R]',
    ('HAT-L', 4): 'Set5 33.30, Set14 29.47, BSD100 28.09, Urban100 28.60, Manga109 33.09 [R]',
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        purpose: first line of the file.
        total_iter, rate, milestones: length and learning rate of the schedule, halved at each milestone.
        data: 'DF2K' or 'ImageNet'.
        start: the run whose EMA weights it starts from, or nothing.
        strict: whether those weights must fit entirely.
        expected: the published figure, with its mark.
        source: where the recipe comes from.
        batch: patches of one GPU in one pass; 32 make a step.
        amp: reduced precision, or nothing.
        hardware: what it was published on, or what it is for.
    """

    purpose: str
    total_iter: int
    rate: str
    milestones: tuple[int, ...]
    data: str = 'DF2K'
    start: str = ''
    strict: bool = True
    expected: str = 'none published'
    source: str = 'official training settings of HAT [R]'
    batch: int = 4
    amp: str = ''
    hardware: str = f'published 8 GPUs of 4 patches; total_batch_size keeps the {BATCH} on any number of them'


SCRATCH = (500_000, '0.0002', (250_000, 400_000, 450_000, 475_000))
FROM_X2 = (250_000, '0.0001', (125_000, 200_000, 225_000, 240_000))
IMAGENET = (800_000, '0.0002', (300_000, 500_000, 650_000, 700_000, 750_000))
FINETUNE = (250_000, '0.00001', (125_000, 200_000, 225_000, 240_000))


def figure(network: Network, scale: int) -> str:
    """Published PSNR as text."""
    if scale not in network.figures:
        return 'none published for this network without ImageNet pre-training'
    values, mark = network.figures[scale]
    return ', '.join(f'{name} {value}' for name, value in zip(SETS, values.split(), strict=True)) + f' [{mark}]'


def df2k_recipe(network: Network, scale: int) -> Recipe:
    """x2 and x3 from scratch, x4 from x2."""
    label, whose = network.label, 'the published recipe' if network is not HAT_L else "HAT's recipe"
    recipe = Recipe(f'{label} x{scale} on DF2K, from scratch: {whose}.', *SCRATCH, expected=figure(network, scale))
    if scale == 4:
        purpose = f'{label} x4 on DF2K, from the weights of x2: {whose}.'
        start = f'train_{label}_SRx2'
        recipe = Recipe(purpose, *FROM_X2, start=start, strict=False, expected=recipe.expected)
    if network is HAT_L:
        source = "official settings of HAT [R]; HAT-L's own published chain is ..._ImageNet, then ..._ImageNet_finetune"
        return replace(recipe, source=source)
    return recipe


def light_recipe() -> Recipe:
    """A small network of our own."""
    return Recipe(
        'A light HAT x4 on DF2K, from scratch, for one small GPU.',
        SCRATCH[0],
        '0.0005',
        SCRATCH[2],
        expected='not measured; for comparison SwinIR-light, of 0.9 M parameters: Set5 32.44 [F]',
        source='sizes and rate are a choice of this plugin; the schedule is that of HAT [R]',
        batch=8,
        amp='bf16',
        hardware='one GPU of 8 GB that knows bf16; --force_yml datasets:train:batch_size_per_gpu=4 on a smaller one',
    )


def swinir_recipe() -> Recipe:
    """The baseline."""
    return Recipe(
        'SwinIR x4 on DF2K, from scratch: the baseline on the same data, patches and batches as HAT.',
        *SCRATCH,
        expected=figure(SWINIR, 4) + '; the published weights started from x2',
        source='official training settings of SwinIR, classical [R]',
    )
