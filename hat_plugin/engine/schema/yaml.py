"""Option files as YAML: a safe loader that reads numbers as people write them and refuses what could do harm."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from hat_plugin.errors import OptionsError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000

_INT = re.compile(r'^(?:[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*)$')
_FLOAT = re.compile(
    r'^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?'
    r'|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?'
    r'|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+'
    r'|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$'
)


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader, in which ``1e-4`` is a number (YAML 1.1 says text), ``1:30`` and ``2024-01-01`` are text,
    a key given twice is an error, and aliases may not blow up."""

    yaml_implicit_resolvers = {
        first: [
            (tag, regexp) for tag, regexp in resolvers if tag.rsplit(':', 1)[1] in ('bool', 'merge', 'null', 'value')
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_data(self) -> Any:
        """The document as dicts, lists and scalars; refused when its aliases expand to more than `MAX_NODES` nodes."""
        node = self.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {}, set())
        return self.construct_document(node)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Decimal (a leading zero means nothing), 0x or 0b."""
        text = self.construct_scalar(node).replace('_', '')
        digits = text.lstrip('+-').lower()
        base = {'0x': 16, '0b': 2}.get(digits[:2], 10)
        return int(text, base)


for _first in '-+0123456789.':
    OptionLoader.add_implicit_resolver('tag:yaml.org,2002:float', _FLOAT, [_first])
    OptionLoader.add_implicit_resolver('tag:yaml.org,2002:int', _INT, [_first])
OptionLoader.add_constructor('tag:yaml.org,2002:int', OptionLoader.construct_integer)


def _expanded_size(node: yaml.Node, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Number of nodes that `node` stands for once each alias is written out."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in open_nodes:
        raise yaml.composer.ComposerError(None, None, 'an alias stands inside what it names', node.start_mark)
    open_nodes.add(id(node))
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        _refuse_double_keys(node)
        children = [part for pair in node.value for part in pair]
    size = 1 + sum(_expanded_size(child, sizes, open_nodes) for child in children)
    if size > MAX_NODES:
        raise yaml.composer.ComposerError(
            None, None, f'the file stands for more than {MAX_NODES} values; this is no option file', node.start_mark
        )
    open_nodes.discard(id(node))
    sizes[id(node)] = size
    return size


def _refuse_double_keys(node: yaml.MappingNode) -> None:
    """Raise where a mapping names one key twice; PyYAML would silently keep the last."""
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == 'tag:yaml.org,2002:merge':
            continue
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f'{key_node.value!r} is given twice in one section; keep one of them', key_node.start_mark
            )
        seen.add(key_node.value)


def plain_copy(value: Any) -> Any:
    """A deep copy as plain dicts and lists that share nothing (aliases are written out)."""
    if isinstance(value, dict):
        return {key: plain_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_copy(item) for item in value]
    return value


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document safely.

    Args:
        text: the document.
        source: what to call it in an error.

    Raises:
        OptionsError: it is no YAML, has a tag that would make an object, a key twice, or aliases that blow up.
    """
    try:
        return plain_copy(yaml.load(text, Loader=OptionLoader))  # noqa: S506 (a SafeLoader)
    except yaml.constructor.ConstructorError as error:
        raise OptionsError(source, [_describe(error)]) from error
    except yaml.YAMLError as error:
        raise OptionsError(source, [f'this is not YAML: {_describe(error)}']) from error
    except RecursionError as error:
        raise OptionsError(source, ['values are nested too deeply; this is no option file']) from error
    except (ValueError, TypeError) as error:
        raise OptionsError(source, [f'a value cannot be read: {error}']) from error


def _describe(error: yaml.YAMLError) -> str:
    """One line with the place, in place of PyYAML's several."""
    problem = getattr(error, 'problem', None) or str(error).splitlines()[0]
    if 'could not determine a constructor for the tag' in problem:
        tag = problem.rsplit('tag ', 1)[1].strip("'").replace('tag:yaml.org,2002:', '!!')
        problem = f'the tag {tag} is refused (option files hold text, numbers, lists and mappings only); remove it'
    mark = getattr(error, 'problem_mark', None)
    return f'line {mark.line + 1}, column {mark.column + 1}: {problem}' if mark else problem


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an option file.

    Args:
        path: a YAML file.

    Returns:
        Plain nested dicts, lists and scalars; ``1e-4`` and ``!!float 1e-4`` are floats.

    Raises:
        OptionsError: no such file, not UTF-8 or YAML, not a mapping, or one of the harms `parse_yaml` refuses.
    """
    source = os.fspath(path)
    try:
        with open(path, 'rb') as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise OptionsError(source, [_unreadable(Path(path), error)]) from error
    if len(data) > MAX_BYTES:
        raise OptionsError(source, [f'the file is larger than {MAX_BYTES >> 20} MiB; this is no option file'])
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise OptionsError(source, [f'the file is not UTF-8 text ({error.reason} at byte {error.start})']) from error
    opt = parse_yaml(text, source)
    if not isinstance(opt, dict):
        kind = 'empty' if opt is None else f'a {type(opt).__name__}'
        raise OptionsError(source, [f'the file is {kind}; an option file holds `name: value` lines, see options/*.yml'])
    return opt


def _unreadable(path: Path, error: OSError) -> str:
    if path.is_dir():
        return 'this is a folder; name a .yml file in it'
    if isinstance(error, FileNotFoundError):
        near = sorted(entry.name for entry in path.parent.glob('*.yml')) if path.parent.is_dir() else []
        match = get_close_matches(path.name, near, 1, 0.6)
        return 'no such file' + (
            f'; did you mean {path.parent / match[0]}?' if match else '; check the path after -opt'
        )
    return f'cannot be read: {error.strerror}'
