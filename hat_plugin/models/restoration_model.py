"""The model that all networks here train with: built from the options, one optimiser step at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from hat_plugin.engine import checkpoint
from hat_plugin.engine.cuda_graphs import CudaGraphs, graphs_for, make_room
from hat_plugin.engine.ema import update_ema
from hat_plugin.engine.optimizers import LearningRate, build_optimizer
from hat_plugin.engine.options import RootOptions
from hat_plugin.errors import HatPluginError, TrainingError
from hat_plugin.losses.pretrained import VGG19_FILE, missing_weights
from hat_plugin.models import states
from hat_plugin.models.inference import check_precision, convert, precision_of, restore_batch
from hat_plugin.models.step import StepMixin
from hat_plugin.models.validation import ValidationMixin

SLOTS = ('pix', 'percep', 'style', 'gan')  # what the losses of BasicSR's slots are called in the log


class RestorationModel(StepMixin, ValidationMixin, SRModel):
    """Supervised training of one network on (lq, gt) pairs.

    It stands in for BasicSR's ``SRModel`` in BasicSR's own pipelines and in ours. On top of BasicSR's options, under
    ``train``: ``amp`` (bf16 or fp16), ``grad_clip`` (largest global norm), ``total_batch_size`` (over all ranks; split
    into micro-batches of ``batch_size_per_gpu``), ``losses`` (a list), ``compile``, ``cuda_graphs``,
    ``channels_last``, ``max_nonfinite`` and any optimiser or schedule of torch or timm.

    Args:
        opt: options as `hat_plugin.engine.options.load_options` or BasicSR's ``parse_options`` give them.
    """

    # What the option file may hold, and whether there must be a discriminator; see `model_facts` in engine.
    OPTIONS: ClassVar[type[RootOptions]] = RootOptions
    ADVERSARIAL: ClassVar[bool] = False

    def __init__(self, opt: dict[str, Any]) -> None:
        BaseModel.__init__(self, opt)
        self.opt = opt
        self.device = states.device_of(opt)
        check_precision(precision_of(opt), self.device)
        self.log_dict: dict[str, float] = OrderedDict()
        train_opt = opt.get('train') or {}
        self.channels_last = bool(train_opt.get('channels_last'))
        self.net_g = self._build('network_g')
        self.loaded_keys: tuple[str, ...] = ()
        self._load_pretrained('g', self.net_g)
        if self.is_train:
            self.init_training_settings()
        else:
            convert(self.get_bare_model(self.net_g), precision_of(opt))

    # -- construction ------------------------------------------------------------------------------------------------

    def _build(self, section: str) -> nn.Module:
        """Build a network, move it to the device and wrap it for distributed training.

        Raises:
            HatPluginError: its constructor refuses the options.
        """
        try:
            net = build_network(deepcopy(self.opt[section])).to(self.device)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise HatPluginError(f'{section}: {self.opt[section].get("type")}: {error}') from error
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)
        count = sum(parameter.numel() for parameter in net.parameters())
        get_root_logger().info(f'Network: {type(net).__name__}, with parameters: {count:,d}')
        get_root_logger().debug(str(net))
        return self.model_to_device(net)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device; DistributedDataParallel around it when training on several ranks."""
        net = net.to(self.device)
        if not self.opt.get('dist'):
            if self.opt.get('num_gpu', 0) > 1 and self.device.type == 'cuda':
                return nn.DataParallel(net)
            return net
        if not self.is_train:
            return net
        return states.distributed_data_parallel(net, self.device, bool(self.opt.get('find_unused_parameters', False)))

    def _load_pretrained(self, label: str, net: nn.Module) -> None:
        path = self.opt['path'].get(f'pretrain_network_{label}')
        if path:
            param_key = self.opt['path'].get(f'param_key_{label}', 'params')
            self.load_network(net, path, self.opt['path'].get(f'strict_load_{label}', True), param_key)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Load a weights file of any common form; see `hat_plugin.engine.checkpoint.load_weights`.

        Raises:
            CheckpointError: the file is broken or unsafe, or strict and it does not fit; differing shapes are listed.
        """
        weights = checkpoint.load_weights(load_path, param_key)
        logger = get_root_logger()
        if weights.key != param_key:
            logger.warning(f'{load_path} has no entry {param_key!r}; {weights.key or "its root"} was taken')
        left_out = checkpoint.load_into(self.get_bare_model(net), weights, strict=strict)
        logger.info(f'Loading {type(self.get_bare_model(net)).__name__} from {load_path}, key [{weights.key}]')
        for line in left_out:
            logger.warning(f'  not loaded: {line}')
        self.loaded_keys = weights.available

    def init_training_settings(self) -> None:
        """EMA, losses, optimisers, schedules, precision."""
        self.net_g.train()
        train_opt = self.opt['train']
        self.ema_decay = train_opt.get('ema_decay', 0)
        if self.ema_decay > 0:
            self.net_g_ema = deepcopy(self.get_bare_model(self.net_g)).eval().requires_grad_(False)
            if 'params_ema' in self.loaded_keys:
                path = self.opt['path']['pretrain_network_g']
                self.load_network(self.net_g_ema, path, self.opt['path'].get('strict_load_g', True), 'params_ema')
            get_root_logger().info(f'Use Exponential Moving Average with decay: {self.ema_decay}')
        self.init_step()
        self.init_losses()
        self.setup_optimizers()
        self.setup_schedulers()
        # Beside net_g, not in its place: validation meets pictures of many sizes, which go strip by strip uncompiled.
        # A graph for each size: with symbolic sizes torch 2.13's compiler fails on what is kept for the backward pass.
        self.forward_g: Callable[[Tensor], Tensor] = self.net_g
        if train_opt.get('compile'):
            self.forward_g = torch.compile(self.net_g, dynamic=False)
        self.graphs: CudaGraphs | None = None
        if train_opt.get('cuda_graphs'):
            self.graphs = graphs_for(self.net_g, self.device)

    def init_losses(self) -> None:
        """BasicSR's slots, and the ``losses`` list.

        Raises:
            HatPluginError: there is no loss at all.
        """
        train_opt = self.opt['train']
        self.cri_pix = self._loss(train_opt.get('pixel_opt'))
        self.cri_perceptual = self._loss(train_opt.get('perceptual_opt'))
        self.extra_losses = nn.ModuleDict()
        for options in train_opt.get('losses') or []:
            options = dict(options)
            name = options.pop('name', options['type'])
            if name in self.extra_losses or name in SLOTS:
                raise HatPluginError(f'train: losses: two losses are called {name!r}; give one of them another name')
            loss = self._loss(options)
            assert loss is not None
            self.extra_losses[name] = loss
        if self.cri_pix is None and self.cri_perceptual is None and not self.extra_losses:
            raise HatPluginError('train: no loss is given; add pixel_opt: {type: L1Loss} or a list under losses')

    def _loss(self, options: dict[str, Any] | None) -> nn.Module | None:
        try:
            return build_loss(deepcopy(options)).to(self.device) if options else None
        except (OSError, RuntimeError) as error:
            if not options or options.get('type') != 'PerceptualLoss':
                raise
            vgg = options.get('vgg_type', 'vgg19')
            missing = missing_weights(vgg, error, VGG19_FILE if vgg == 'vgg19' else None)
            raise HatPluginError(f'train: perceptual_opt: {missing}, or set perceptual_opt: ~') from error

    def setup_optimizers(self) -> None:
        """The optimiser of ``net_g`` over the parameters that ask for gradients."""
        params = [parameter for parameter in self.net_g.parameters() if parameter.requires_grad]
        self.optimizer_g = build_optimizer(params, self.opt['train']['optim_g'])
        self.optimizers.append(self.optimizer_g)

    def setup_schedulers(self) -> None:
        """One `LearningRate` an optimiser."""
        self.schedulers = [LearningRate(optimizer, self.opt['train']['scheduler']) for optimizer in self.optimizers]

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the rates of iteration `current_iter` (from 1); see `LearningRate`."""
        for schedule in self.schedulers:
            schedule.set(current_iter, warmup_iter)

    # -- a step ------------------------------------------------------------------------------------------------------

    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch: ``lq`` and, but for pictures without ground truth, ``gt``; (B, C, H, W), RGB, in [0, 1]."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.lq = data['lq'].to(self.device, non_blocking=True, memory_format=layout)
        self.gt = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None

    def compute_losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Every loss term by its name in the log; their sum is what is minimised.

        Args:
            output: the network's, (B, C, H, W), float32.
            target: the ground truth, same shape.
        """
        terms: dict[str, Tensor] = OrderedDict()
        if self.cri_pix is not None:
            terms['l_pix'] = self.cri_pix(output, target)
        if self.cri_perceptual is not None:
            percep, style = self.cri_perceptual(output, target)
            terms.update({name: term for name, term in (('l_percep', percep), ('l_style', style)) if term is not None})
        for name, loss in self.extra_losses.items():
            terms[f'l_{name}'] = loss(output, target)
        return terms

    def optimize_parameters(self, current_iter: int) -> None:
        """One optimiser step on the batch that `feed_data` took.

        A step whose loss or gradient is not finite on any rank is skipped, on all ranks; the weights stay.

        Raises:
            TrainingError: more than ``max_nonfinite`` steps in a row were not finite; the loss at fault is named.
        """
        self.optimizer_g.zero_grad(set_to_none=True)
        parts, total = self.micro_batches(), self.lq.shape[0]
        if self.graphs is not None and len(parts) > 1:
            make_room(self.optimizer_g)
        sums: dict[str, Tensor] = OrderedDict()
        for index, (lq, gt) in enumerate(parts):
            with states.gradient_sync(self.net_g, index == len(parts) - 1):
                with self.autocast():
                    output = self.forward_g(lq)
                terms = self.compute_losses(output.float(), gt)
                share = lq.shape[0] / total
                self.scaler.scale(torch.stack([*terms.values()]).sum() * share).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach() * share
        self.output = output.detach()
        self.log_dict = OrderedDict()
        self.apply_step(self.optimizer_g, self.net_g, sums, current_iter, then=self._update_ema)

    def _update_ema(self) -> None:
        if self.ema_decay > 0:
            update_ema(self.net_g_ema, self.get_bare_model(self.net_g), self.ema_decay)

    # -- use ---------------------------------------------------------------------------------------------------------

    def evaluation_network(self) -> nn.Module:
        """The EMA network where there is one, else the network itself, unwrapped."""
        self.settle()
        return self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)

    def restore(self, net: nn.Module) -> tuple[Tensor, bool]:
        """``self.lq`` through a network, (B, C, H * scale, W * scale), and whether in tiles; a hook for `test`."""
        return restore_batch(net, self.lq, self.opt)

    def test(self) -> None:
        """Restore ``self.lq`` into ``self.output`` (float32); modes of the networks are as before afterwards.

        Raises:
            TrainingError: the output is not finite; no metric is made of it.
        """
        net = self.evaluation_network()
        training = net.training
        net.eval()
        try:
            self.output, self.tiled = self.restore(net)
        finally:
            net.train(training)
        if not bool(torch.isfinite(self.output).all()):
            raise TrainingError(
                'the output of the network is not finite (NaN or infinity). The weights are broken, or the precision'
                ' too low; go back to an earlier checkpoint with path: resume_state.'
            )

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def checkpoint_networks(self) -> dict[str, dict[str, nn.Module]]:
        """What a checkpoint holds: file label -> entry -> network."""
        entries = {'params': self.get_bare_model(self.net_g)}
        if hasattr(self, 'net_g_ema'):
            entries['params_ema'] = self.net_g_ema
        return {'net_g': entries}

    def extra_state(self) -> dict[str, Any]:
        """Anything else that a resumed run needs, as tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    def save(self, epoch: int, current_iter: int, progress: dict[str, Any] | None = None) -> None:
        """Write the networks, and then the training state; -1 writes ``net_g_latest.pth`` alone.

        Collective: with several ranks each must call it, since their random states are gathered. `progress` are the
        training loop's own entries of the state.

        Raises:
            CheckpointError: it could not be written, on every rank.
        """
        states.save(self, epoch, current_iter, progress or {})

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restore networks, optimisers and all else from a training state of ours or of BasicSR."""
        states.resume(self, resume_state, Path(self.opt['path']['models']))
