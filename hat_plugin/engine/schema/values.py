"""The kinds of values that option files hold, and what an error says where one is of another kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from collections.abc import Mapping as MappingType
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# What networks call the number of channels that they take.
INPUT_CHANNELS = ('in_chans', 'num_in_ch', 'in_channels', 'inp_channels', 'img_channel', 'in_nc')


def _whole(value: Any) -> Any:
    """Whole numbers, also as 5e3; no text, no true/false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError('a whole number is wanted' + _quote_remedy(value))
    if isinstance(value, float) and not value.is_integer():
        raise ValueError('a whole number is wanted')
    return int(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError('a number is wanted' + _quote_remedy(value))
    return float(value)


def _flag(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError('true or false is wanted' + (', without quotes' if isinstance(value, str) else ''))
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError('text is wanted; put it in quotes' if isinstance(value, int | float) else 'text is wanted')
    return value


def _devices(value: Any) -> Any:
    if value is None or value == 'auto' or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError("'auto', 0 (the CPU) or a number of GPUs is wanted")


def _quote_remedy(value: Any) -> str:
    """A hint where the text would be the number wanted, but for its quotes."""
    try:
        float(value) if isinstance(value, str) else float('no')
    except ValueError:
        return ''
    return '; remove the quotes'


_UNSAFE = re.compile(r'[/\\\x00-\x1f]')


def _plain_folder_name(value: str) -> str:
    """One plain folder name: runs are made, renamed and removed under it, so it may not lead elsewhere."""
    if not value.strip() or value != value.strip() or value in ('.', '..') or _UNSAFE.search(value):
        raise ValueError('one plain folder name is wanted, without / or .. : the run is kept in experiments/<name>')
    if len(value.encode()) > 200:
        raise ValueError('the name is longer than 200 bytes; shorten it')
    return value


Int = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Counts = Annotated[list[Count], Field(min_length=1)]
CountOrZero = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Devices = Annotated[Any, AfterValidator(_devices)]
Text = Annotated[str, BeforeValidator(_text)]
FolderName = Annotated[str, BeforeValidator(_text), AfterValidator(_plain_folder_name)]
PerChannel = Annotated[list[Float], Field(min_length=1, max_length=3)]
Range = Annotated[list[Float], Field(min_length=2, max_length=2)]
Mapping = dict[str, Any]
NO_FOLDER = 'none'
"""What Restormer's option files write after ``dataroot_lq`` where there is none."""


class Section(BaseModel):
    """A section whose keys are all known."""

    model_config = ConfigDict(extra='forbid', hide_input_in_errors=True)

    @classmethod
    def without_effect(cls, section: MappingType[str, Any]) -> Iterator[tuple[str, str]]:
        """(key, reason) of what a section says that changes nothing, beside what `notes` knows of all files."""
        return iter(())


def takes_whole(schema: type[BaseModel]) -> set[str]:
    """The keys of a section that are whole numbers."""
    return {name for name, field in schema.model_fields.items() if _is_whole(field.annotation)}


def _is_whole(annotation: Any) -> bool:
    return annotation is int or any(_is_whole(part) for part in get_args(annotation))


def positive_whole(value: Any) -> int:
    """A positive whole number, or 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1e12:
        return 0
    return max(0, int(value)) if value == int(value) else 0


def world_size() -> int:
    """Number of processes, as torchrun tells it."""
    value = os.environ.get('WORLD_SIZE', '')
    return int(value) if value.isdecimal() and int(value) > 0 else 1
