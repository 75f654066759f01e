"""Real-HAT: training on pairs that are degraded on the fly, without (MSE) and with a discriminator (GAN)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from basicsr.data.transforms import paired_random_crop
from basicsr.utils import USMSharp
from torch import Tensor, nn

from hat_plugin.data.degradations import PairPool, SecondOrderDegradation
from hat_plugin.engine.optimizers import build_optimizer
from hat_plugin.engine.options import RealDegradationOptions, RootOptions
from hat_plugin.errors import HatPluginError, OptionsError
from hat_plugin.models.restoration_model import RestorationModel


class RealHATMSEModel(RestorationModel):
    """Trains on LQ made from ground truth and blur kernels, as a RealESRGANDataset gives them.

    Options at the top level, besides those of the degradation: ``gt_usm`` (sharpen the ground truth), ``gt_size`` (side
    of a patch), ``queue_size`` (pairs in the pool), ``high_order_degradation`` (false: train on (lq, gt) pairs).

    Validation, and training data that bring their own ``lq``, go through undegraded.

    Args:
        opt: options as `hat_plugin.engine.options.load_options` or BasicSR's ``parse_options`` give them.

    Raises:
        OptionsError: options of the degradation are missing.
    """

    OPTIONS: ClassVar[type[RootOptions]] = RealDegradationOptions
    SWITCHES: tuple[str, ...] = ('gt_usm',)

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        if not self.is_train or not opt.get('high_order_degradation', True):
            self.degradation = None
            return
        missing = [f'{key}: missing; add it' for key in (*self.SWITCHES, 'gt_size') if opt.get(key) is None]
        if missing:
            raise OptionsError(str(opt.get('name', 'options')), missing)
        self.degradation = SecondOrderDegradation.from_options(opt).to(self.device)
        self.pool = PairPool(opt.get('queue_size') or 180)

    def init_training_settings(self) -> None:
        """BasicSR's hook; the sharpener is needed by the losses that are set up in it."""
        self.sharpen = USMSharp().to(self.device)
        super().init_training_settings()

    @torch.no_grad()
    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch: ``gt``, ``kernel1``, ``kernel2``, ``sinc_kernel`` to be degraded, or ``lq`` and ``gt``."""
        if self.degradation is None or 'kernel1' not in data:
            super().feed_data(data)
            return
        gt, *kernels = (data[key].to(self.device) for key in ('gt', 'kernel1', 'kernel2', 'sinc_kernel'))
        gt, source = self._targets(gt)
        lq = self.degradation(source, *kernels)
        gt_size, scale = self.opt['gt_size'], int(self.opt['scale'])
        if gt_size > min(gt.shape[-2:]) or gt_size % scale:
            raise HatPluginError(
                f'gt_size: {gt_size} must be a multiple of the scale, {scale}, and no larger than the pictures of the '
                f'data set, {gt.shape[-2]}x{gt.shape[-1]}'
            )
        gt, lq = paired_random_crop(gt, lq, gt_size, scale)
        self.lq, self.gt = self.pool.exchange(lq.contiguous(), gt.contiguous())
        if self.channels_last:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)

    def _targets(self, gt: Tensor) -> tuple[Tensor, Tensor]:
        """What is trained towards, and what is degraded."""
        if self.opt['gt_usm']:
            gt = self.sharpen(gt)
        return gt, gt

    def extra_state(self) -> dict[str, Any]:
        """The pool, so that a resumed run goes on with the same pairs (of rank 0, where there are several)."""
        return super().extra_state() | ({'pool': self.pool.state_dict()} if self.degradation is not None else {})

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back the pool."""
        super().load_extra_state(state)
        if self.degradation is not None and 'pool' in state:
            self.pool.load_state_dict(state['pool'], self.device)


class RealHATGANModel(RealHATMSEModel):
    """Adds a discriminator, ``network_d``, trained in turn with the network.

    Options: ``l1_gt_usm``, ``percep_gt_usm``, ``gan_gt_usm`` (which losses see a sharpened ground truth), ``train:
    gan_opt``, ``optim_d``, ``net_d_iters`` (the network steps every so many iterations) and ``net_d_init_iters`` (and
    only after so many). The degradation starts from the sharpened ground truth.
    """

    OPTIONS = RealDegradationOptions
    ADVERSARIAL = True
    SWITCHES = ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm')

    def init_training_settings(self) -> None:
        """Build the discriminator before losses and optimisers."""
        train_opt = self.opt['train']
        if not self.opt.get('network_d') or not train_opt.get('gan_opt') or not train_opt.get('optim_d'):
            raise HatPluginError('RealHATGANModel needs network_d, train: gan_opt and train: optim_d')
        for slot in ('ldl_opt', 'feature_matching_opt'):
            if train_opt.get(slot):
                raise HatPluginError(f'train: {slot}: RealHATGANModel has no such loss; remove it')
        self.net_d = self._build('network_d')
        self._load_pretrained('d', self.net_d)
        self.net_d.train()
        self.net_d_iters = train_opt.get('net_d_iters') or 1
        self.net_d_init_iters = train_opt.get('net_d_init_iters') or 0
        self._real_and_fake: list[tuple[Tensor, Tensor]] = []
        super().init_training_settings()

    def init_losses(self) -> None:
        """The losses of the base, and the adversarial one."""
        super().init_losses()
        gan = self._loss(self.opt['train']['gan_opt'])
        assert gan is not None  # init_training_settings made sure of it
        self.cri_gan = gan

    def setup_optimizers(self) -> None:
        """One optimiser a network."""
        super().setup_optimizers()
        self.optimizer_d = build_optimizer(list(self.net_d.parameters()), self.opt['train']['optim_d'])
        self.optimizers.append(self.optimizer_d)

    def _targets(self, gt: Tensor) -> tuple[Tensor, Tensor]:
        return gt, self.sharpen(gt)

    def _wanted(self, gt: Tensor, sharp: Tensor, switch: str) -> Tensor:
        return sharp if self.opt.get(switch) else gt

    def compute_losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The network's losses, each against the ground truth that its switch asks for."""
        with torch.no_grad():
            sharp = self.sharpen(target)
        terms: dict[str, Tensor] = OrderedDict()
        if self.cri_pix is not None:
            terms['l_g_pix'] = self.cri_pix(output, self._wanted(target, sharp, 'l1_gt_usm'))
        if self.cri_perceptual is not None:
            percep, style = self.cri_perceptual(output, self._wanted(target, sharp, 'percep_gt_usm'))
            found = (('l_g_percep', percep), ('l_g_style', style))
            terms.update({name: term for name, term in found if term is not None})
        for name, loss in self.extra_losses.items():
            terms[f'l_g_{name}'] = loss(output, self._wanted(target, sharp, 'l1_gt_usm'))
        # Without the wrapper for several ranks: this pass leaves no gradient in the discriminator.
        with self.autocast():
            judged = self.get_bare_model(self.net_d)(output)
        terms['l_g_gan'] = self.cri_gan(judged.float(), True, is_disc=False)
        self._real_and_fake.append((self._wanted(target, sharp, 'gan_gt_usm'), output.detach()))
        return terms

    def optimize_parameters(self, current_iter: int) -> None:
        """A step of the network, where it is its turn, and one of the discriminator.

        Raises:
            TrainingError: losses were not finite too often in a row.
        """
        self._real_and_fake = []
        if current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters:
            self.net_d.requires_grad_(False)
            try:
                super().optimize_parameters(current_iter)
            finally:
                self.net_d.requires_grad_(True)
            self.settle()  # the discriminator learns nothing from pictures of a step that was skipped
            if any(value - value != 0 for name, value in self.log_dict.items() if name.startswith('l_')):
                return
        else:
            self.log_dict = OrderedDict()
            self._only_forward()
        self._step_discriminator(current_iter)

    @torch.no_grad()
    def _only_forward(self) -> None:
        for lq, gt in self.micro_batches():
            with self.autocast():
                output = self.get_bare_model(self.net_g)(lq)
            real = self.sharpen(gt) if self.opt.get('gan_gt_usm') else gt
            self._real_and_fake.append((real, output.float()))
        self.output = self._real_and_fake[-1][1]

    def _step_discriminator(self, current_iter: int) -> None:
        """Real and fake pictures, each with a backward pass of its own: spectral norm's buffers change in forward."""
        self.optimizer_d.zero_grad(set_to_none=True)
        total = sum(real.shape[0] for real, _ in self._real_and_fake)
        sums: dict[str, Tensor] = OrderedDict()
        for pair in self._real_and_fake:
            for name, picture, is_real in zip(('real', 'fake'), pair, (True, False), strict=True):
                share = picture.shape[0] / total
                with self.autocast():
                    judged = self.net_d(picture)
                loss = self.cri_gan(judged.float(), is_real, is_disc=True)
                self.scaler.scale(loss * share).backward()
                for key, value in ((f'l_d_{name}', loss), (f'out_d_{name}', judged.float().mean())):
                    sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach() * share
        self._real_and_fake = []
        self.apply_step(self.optimizer_d, self.net_d, sums, current_iter, norm_name='grad_norm_d')

    def checkpoint_networks(self) -> dict[str, dict[str, nn.Module]]:
        """The networks of the base, and the discriminator as ``net_d``."""
        return super().checkpoint_networks() | {'net_d': {'params': self.get_bare_model(self.net_d)}}
