"""The sections of an option file: BasicSR 1.4.2's, and what this plugin adds to them.

Arguments of networks, losses, metrics, optimisers and data sets are not here: `classes` and `data` check them against
the classes themselves, so that other people's classes need no entry in this file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hat_plugin.engine.schema.values import (
    Count,
    CountOrZero,
    Devices,
    Flag,
    Float,
    FolderName,
    Int,
    Mapping,
    Positive,
    Section,
    Text,
)


class WandbOptions(Section):
    """Weights & Biases; off while `project` is empty."""

    project: Text | None = None
    resume_id: Text | None = None


class DistOptions(Section):
    """Distributed training."""

    backend: Literal['nccl', 'gloo'] | None = None
    port: Count | None = None


class TileOptions(Section):
    """Validation and test in tiles, for little memory."""

    tile_size: Count = Field(description="a tile's side in low-resolution pixels")
    tile_pad: CountOrZero | None = None


class PublishedOptions(Section):
    """Figures that others published, to be shown beside those of a test."""

    source: Text = Field(description='where the figures come from')
    figures: dict[str, dict[str, Float]] = Field(description='test set -> metric -> figure, named as in this file')


class RootOptions(Section):
    """The top level."""

    name: FolderName = Field(description='the name of the run, and of its folder in experiments/ or results/')
    model_type: Text = Field(description='a registered model, HATModel say')
    scale: Count | None = None
    num_gpu: Devices = None
    manual_seed: Annotated[CountOrZero, Field(lt=2**32)] | None = None
    find_unused_parameters: Flag | None = None
    datasets: Mapping = Field(description='what to train, validate or test on')
    network_g: Mapping = Field(description='the network: its type and its arguments')
    network_d: Mapping | None = None
    path: Mapping | None = None
    train: Mapping | None = None
    val: Mapping | None = None
    logger: Mapping | None = None
    dist_params: DistOptions | None = None
    tile: TileOptions | None = None
    published: PublishedOptions | None = None


class PathOptions(Section):
    """Weights to start from, a state to resume."""

    pretrain_network_g: Text | None = None
    param_key_g: Text | None = None
    strict_load_g: Flag | None = None
    pretrain_network_d: Text | None = None
    param_key_d: Text | None = None
    strict_load_d: Flag | None = None
    ignore_resume_networks: list[Text] | Text | None = None
    resume_state: Text | None = None
    root: Text | None = None


class TrainOptions(Section):
    """How to train."""

    total_iter: Count = Field(description='the number of iterations to train')
    optim_g: Mapping = Field(description='the optimiser: type, lr and its arguments')
    scheduler: Mapping = Field(description='the learning-rate schedule: type and its arguments')
    warmup_iter: Annotated[Int, Field(ge=-1)] | None = None
    ema_decay: Annotated[Float, Field(ge=0, lt=1)] | None = None
    optim_d: Mapping | None = None
    pixel_opt: Mapping | None = None
    perceptual_opt: Mapping | None = None
    ldl_opt: Mapping | None = None
    gan_opt: Mapping | None = None
    feature_matching_opt: Mapping | None = None
    losses: list[Mapping] | None = None
    net_d_iters: Count | None = None
    net_d_init_iters: CountOrZero | None = None
    amp: Literal['bf16', 'fp16'] | None = None
    grad_clip: Positive | None = None
    total_batch_size: Count | None = None
    compile: Flag | None = None
    cuda_graphs: Flag | None = None
    channels_last: Flag | None = None
    max_nonfinite: CountOrZero | None = None


class ValOptions(Section):
    """How to validate or test."""

    val_freq: Count | None = Field(None, description='validate every so many iterations')
    save_img: Flag | None = None
    suffix: FolderName | None = None
    pbar: Flag | None = None
    metrics: Mapping | None = None
    use_image: Flag | None = None
    at_start: Flag | None = None
    precision: Literal['fp32', 'bf16', 'fp16'] | None = None


class LoggerOptions(Section):
    """What to log and keep."""

    print_freq: Count = Field(description='log every so many iterations')
    save_checkpoint_freq: Count = Field(description='save weights and state every so many iterations')
    use_tb_logger: Flag | None = None
    wandb: WandbOptions | None = None
    keep_checkpoints: Count | None = None
