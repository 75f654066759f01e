"""Validation shared by all ranks: each restores its part of the pictures, all know the same metric."""

from __future__ import annotations

import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, imwrite, tensor2img
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor

from hat_plugin.data.names import picture_name
from hat_plugin.engine import distributed
from hat_plugin.engine.progress import progress
from hat_plugin.errors import DataError, HatPluginError, TrainingError
from hat_plugin.models.inference import precision_of

Row: TypeAlias = tuple[int, str, dict[str, float], bool]
"""A picture: its place in the data set, its name, its metrics, whether it was restored in tiles."""


class ValidationMixin:
    """BasicSR's ``validation`` for a model with ``feed_data`` and ``test``.

    Attributes:
        metric_results: metric -> mean over the pictures of the last validation, the same on every rank.
        image_results: (picture's name, its metrics) in the data set's order.
        tiled_images: how many of these pictures were restored in tiles.
        should_stop: asked before each picture; True (on any rank) breaks the validation off.
        validation_complete: whether the last one was not.
    """

    should_stop: Callable[[], bool] = staticmethod(lambda: False)
    validation_complete = True

    opt: dict[str, Any]
    lq: Tensor
    gt: Tensor | None
    output: Tensor
    tiled: bool
    feed_data: Callable[[dict[str, Any]], None]
    test: Callable[[], None]

    def validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool = False) -> None:
        """Restore each picture, measure it (on 8 bits but for ``use_image: false``), log the means.

        Collective: with several ranks each must call it. Any loader will do; one of ours reads only this rank's part.

        Args:
            dataloader: a DataLoader of batch size 1, whose data set has ``opt['name']``.
            current_iter: number for log, TensorBoard and file names; a test run gives its name.
            tb_logger: SummaryWriter or None.
            save_img: write the restored pictures below ``path: visualization``.
        """
        name = dataloader.dataset.opt['name']
        rows: list[Row] = []
        error: HatPluginError | None = None
        try:
            for row in self._restored(dataloader, current_iter, save_img):
                rows.append(row)
        except (DataError, TrainingError) as caught:
            error = caught
        # What one rank met all must know, before any of them waits for the others elsewhere.
        parts = distributed.gather_objects((rows, str(error or ''), self.should_stop()))
        self.validation_complete = not any(stopped for *_, stopped in parts)
        failure = next((text for _, text, _ in parts if text), None)
        if failure is not None:
            raise error or DataError(f'validation of {name} failed on another rank: {failure}')
        if not self.validation_complete:
            get_root_logger().info(f'Validation {name} is broken off by a signal.')
            return
        gathered = {row[0]: row for part, *_ in parts for row in part}
        self._summarise([gathered[index] for index in sorted(gathered)], name, current_iter, tb_logger)

    def _restored(self, dataloader: Any, current_iter: int | str, save_img: bool) -> Iterator[Row]:
        """This rank's pictures, restored and measured one by one; a signal ends it."""
        world, name = distributed.current_world(), dataloader.dataset.opt['name']
        shown = (self.opt['val'] or {}).get('pbar', False) and world.is_main
        for position, data in enumerate(progress(dataloader, description=f'validating {name}', disable=not shown)):
            if 'index' not in data and position % world.size != world.rank:
                continue
            if self.should_stop():
                return
            index = int(data['index']) if 'index' in data else position
            image_name = picture_name(data['lq_path'][0], dataloader.dataset.opt)
            metrics = self._validate_one(data, name, image_name, current_iter, save_img)
            yield index, image_name, metrics, self.tiled

    # BasicSR's pipelines call these two by name.
    def dist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Same as `validation`."""
        self.validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Same as `validation`."""
        self.validation(dataloader, current_iter, tb_logger, save_img)

    def _validate_one(
        self, data: dict[str, Any], dataset_name: str, image_name: str, current_iter: int | str, save_img: bool
    ) -> dict[str, float]:
        self.feed_data(data)
        self.test()
        if save_img:
            path = self._image_path(dataset_name, image_name, current_iter)
            imwrite(as_picture(self.output, use_image=True), str(path))
        if self.gt is not None:
            check_sizes(self.output, self.gt, f'{dataset_name}/{image_name}', self.opt.get('scale', 1))
        return measure_all(self.output, self.gt, self.opt['val'] or {})

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """BasicSR's hook; a resumed run may measure more than the one before it, whose records it took over."""
        if not hasattr(self, 'best_metric_results'):
            self.best_metric_results: dict[str, Any] = {}
        record = self.best_metric_results.setdefault(dataset_name, {})
        for metric in self.metric_results:
            options = self.opt['val']['metrics'][metric]
            better = options.get('better', 'higher')
            worst = float('-inf') if better == 'higher' else float('inf')
            record.setdefault(metric, {'better': better, 'val': worst, 'iter': -1})

    def _image_path(self, dataset_name: str, image_name: str, current_iter: int | str) -> Path:
        folder = Path(self.opt['path']['visualization'])
        if self.opt['is_train']:
            return folder / image_name / f'{Path(image_name).name}_{current_iter}.png'
        return folder / dataset_name / f'{image_name}_{self.opt["val"].get("suffix") or self.opt["name"]}.png'

    def _summarise(
        self,
        rows: list[Row],
        dataset_name: str,
        current_iter: int | str,
        tb_logger: Any,
    ) -> None:
        self.image_results = [(name, metrics) for _, name, metrics, _ in rows]
        self.tiled_images = sum(tiled for *_, tiled in rows)
        measured = [metrics for _, _, metrics, _ in rows if metrics]
        wanted = (self.opt['val'] or {}).get('metrics') or {}
        options = {name: settings for name, settings in wanted.items() if any(name in row for row in measured)}
        if not options:
            get_root_logger().info(f'Validation {dataset_name}: {len(rows)} pictures restored, no ground truth')
            self.metric_results: dict[str, float] = {}
            return
        self.metric_results = {name: float(np.mean([row[name] for row in measured])) for name in options}
        self._initialize_best_metric_results(dataset_name)
        for name, value in self.metric_results.items():
            self._update_best_metric_result(dataset_name, name, value, current_iter)  # type: ignore[attr-defined]
        if distributed.current_world().is_main:
            self._log_validation_metric_values(current_iter, dataset_name, tb_logger)  # type: ignore[attr-defined]
        for name, value in self.metric_results.items():
            if value != value:
                get_root_logger().warning(f'{dataset_name}: {name} is not a number; is crop_border too large for it?')
        tiles, whole = self.tiled_images, 'whole pictures'
        how = whole if not tiles else f'{tiles} of {len(rows)} in tiles, which changes the figures slightly'
        protocol = '; '.join(f'{name}: {describe_metric(each, self.opt["val"])}' for name, each in options.items())
        computed = '' if precision_of(self.opt) == 'fp32' else f'computed in {precision_of(self.opt)}, '
        get_root_logger().log(logging.INFO, f'{dataset_name}: {len(measured)} pictures, {computed}{how}; {protocol}')

    def get_current_visuals(self) -> dict[str, Tensor]:
        """The last picture's ``lq``, ``result`` and, where known, ``gt``, on the CPU."""
        visuals = OrderedDict(lq=self.lq.detach().cpu(), result=self.output.detach().cpu())
        if self.gt is not None:
            visuals['gt'] = self.gt.detach().cpu()
        return visuals


def check_sizes(restored: Tensor, truth: Tensor, name: str, scale: int) -> None:
    """Refuse a picture whose truth is of another size.

    Raises:
        DataError: it is; `name` is the picture's.
    """
    if restored.shape != truth.shape:
        shapes = [tuple(tensor.shape[1:]) for tensor in (restored, truth)]
        raise DataError(
            f'{name}: restored {shapes[0]}, ground truth {shapes[1]}; the ground truth must be scale ({scale}) times'
            ' the input; `basicsr check` lists all such pictures'
        )


def as_picture(batch: Tensor, *, use_image: bool) -> np.ndarray:
    """What a metric sees of a restored picture or a truth.

    Args:
        batch: (1, C, H, W), RGB or gray; clipped to [0, 1].
        use_image: uint8, as a saved picture has it; else float64, not rounded.

    Returns:
        (H, W, 3), BGR, or (H, W), in 0..255.
    """
    if use_image:
        return tensor2img([batch.cpu()])
    return tensor2img([batch.cpu()], out_type=np.float32).astype(np.float64) * 255


def uses_image(options: dict[str, Any], val: dict[str, Any]) -> bool:
    """Whether a metric is taken of uint8 pictures: its own ``use_image``, else that of ``val`` (NAFNet's), else yes."""
    said = (section.get('use_image') for section in (options, val))
    return next((value for value in said if value is not None), True)


def measure(pictures: dict[str, np.ndarray], options: dict[str, Any]) -> float:
    """One metric of one picture.

    Args:
        pictures: the restored one as ``img``, and the truth, if there is one, as ``img2``; see `as_picture`.
        options: the metric's section: `type`, its arguments, and what validation reads for itself.
    """
    if not needs_truth(options):
        pictures = {'img': pictures['img']}
    arguments = {key: value for key, value in options.items() if key not in ('better', 'use_image')}
    return float(calculate_metric(pictures, arguments))


def measure_all(restored: Tensor, truth: Tensor | None, val: dict[str, Any]) -> dict[str, float]:
    """Every metric of ``val`` of one picture; without a truth those alone that need none.

    Args:
        restored, truth: (1, C, H, W); see `as_picture`.
        val: the section.
    """

    @cache  # most runs want one of the two kinds
    def pictures(use_image: bool) -> dict[str, np.ndarray]:
        tensors = {'img': restored} if truth is None else {'img': restored, 'img2': truth}
        return {name: as_picture(tensor, use_image=use_image) for name, tensor in tensors.items()}

    return {
        name: measure(pictures(uses_image(options, val)), options)
        for name, options in (val.get('metrics') or {}).items()
        if truth is not None or not needs_truth(options)
    }


def needs_truth(options: dict[str, Any]) -> bool:
    """Whether a metric compares with a ground truth (PSNR), or looks at the picture alone (NIQE)."""
    return 'img2' in inspect.signature(METRIC_REGISTRY.get(options['type'])).parameters


def describe_metric(options: dict[str, Any], val: dict[str, Any]) -> str:
    """One phrase that says how a metric is taken: 'calculate_psnr on Y, border 4, uint8'."""
    channel = 'Y' if options.get('test_y_channel') else 'RGB'
    numbers = 'uint8' if uses_image(options, val) else 'float'
    return f'{options["type"]} on {channel}, border {options.get("crop_border", 0)}, {numbers}'
