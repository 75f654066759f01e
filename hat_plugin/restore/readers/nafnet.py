"""NAFNet, tested with global or local statistics."""

from __future__ import annotations

from hat_plugin.restore.readers.shapes import Detected, StateDict, count


def read_nafnet(weights: StateDict, scale: int | None) -> Detected:
    """NAFNet in any size. Not visible: whether it is tested with local statistics, as its deblurring networks are."""
    width, channels = weights['intro.weight'].shape[:2]
    levels = range(count(weights, 'downs.{}.'))
    arguments = {
        'img_channel': channels,
        'width': width,
        'middle_blk_num': count(weights, 'middle_blks.{}.'),
        'enc_blk_nums': [count(weights, f'encoders.{level}.{{}}.') for level in levels],
        'dec_blk_nums': [count(weights, f'decoders.{level}.{{}}.') for level in levels],
    }
    local = arguments['enc_blk_nums'] == [1, 1, 1, 28]  # GoPro's and REDS's; SIDD's has [2, 2, 4, 8]
    name, statistics = ('NAFNetLocal', 'local') if local else ('NAFNet', 'global')
    return Detected(name, arguments, 1, channels, 1 << len(levels), (f'{statistics} statistics ({name})',))
