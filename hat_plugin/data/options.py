"""What the data sets here share: their common keys, and how a block is held against a data set's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field

from hat_plugin.engine.options import BackendOptions, LoaderOptions, PerChannel, Section, Text, section_problems
from hat_plugin.errors import OptionsError

Options = TypeVar('Options', bound=Section)


class PictureOptions(LoaderOptions):
    """Keys of the data sets here: what pictures become on the way to a tensor."""

    io_backend: BackendOptions = Field(default=BackendOptions(type='disk'), description='type: disk or lmdb')
    meta_info_file: Text | None = Field(default=None, description='a list of file names, one a line')
    channels: Literal[1, 3] = Field(default=3, description='3: gray is repeated; 1: colour becomes gray')
    alpha: Literal['error', 'drop'] = Field(default='error', description='what to do with transparent pixels')
    color: Literal['y'] | None = Field(default=None, description='y: BT.601 luma in [16, 235] / 255, one channel')
    mean: PerChannel | None = Field(default=None, description='subtracted from each channel')
    std: PerChannel | None = Field(default=None, description='each channel is divided by it')


def checked_options(options: type[Options], dataset_opt: Mapping[str, Any]) -> Options:
    """Hold a whole block against a data set's list.

    Raises:
        OptionsError: naming each key that is wrong, with its value.
    """
    problems = section_problems(options, dataset_opt)
    if problems:
        raise OptionsError(f'data set {dataset_opt.get("name") or dataset_opt.get("type")}', problems)
    return options.model_validate(dict(dataset_opt))


def loader_options(dataset_opt: Mapping[str, Any]) -> LoaderOptions:
    """The loader's keys of a block; the data set's own keys are left aside."""
    keys = LoaderOptions.model_fields.keys()
    return checked_options(LoaderOptions, {key: value for key, value in dataset_opt.items() if key in keys})
