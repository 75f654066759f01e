"""Install BasicSR 1.4.2 from its source archive: on any Python from 3.10 on, and with no PyTorch needed for the build.

    python hat_plugin/install_basicsr.py              # install it with what it needs, as `pip install` would
    python hat_plugin/install_basicsr.py --no-deps    # BasicSR alone
    python hat_plugin/install_basicsr.py --wheel-dir wheels   # only make the wheel

BasicSR is published as a source archive whose setup.py asks for the newest PyTorch (gigabytes) merely to be built, and
cannot be built at all from Python 3.13 on. This script fetches that archive from pip's own index, checks it against
a known SHA-256, corrects its packaging, and lets pip build and install the wheel. Corrected are only

- ``get_version`` in setup.py, which relies on ``locals()`` in a way that Python 3.13 ended (PEP 667);
- ``setup_requires``, which names torch, cython and numpy although the build uses none of them;
- requirements.txt: tensorboard in the place of tb-nightly, which overwrites it file by file, and setuptools where
  Python (3.12 on) no longer carries the ``distutils`` that BasicSR imports.

Not a line of BasicSR's own code is changed. Only the standard library is used here, so the file runs before anything
is installed.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import importlib.metadata
import os
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

VERSION = '1.4.2'
ARCHIVE = f'basicsr-{VERSION}.tar.gz'
SHA256 = 'b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87'
PYPI = 'https://pypi.org/simple'
TIMEOUT = 60  # seconds for a connection

BUILD_SYSTEM = '[build-system]\nrequires = ["setuptools>=64"]\nbuild-backend = "setuptools.build_meta:__legacy__"\n'
GET_VERSION = "def get_version():\n    with open('VERSION') as f:\n        return f.read().strip()\n\n"


class InstallError(Exception):
    """BasicSR cannot be fetched, corrected or built; the message has the remedy."""


def main(argv: list[str] | None = None) -> int:
    """Make and install the wheel; returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n', 1)[0])
    parser.add_argument('--wheel-dir', type=Path, help='put the wheel here and install nothing')
    parser.add_argument('--sdist', type=Path, help=f'a copy of {ARCHIVE}, for machines without an index')
    parser.add_argument('--no-deps', action='store_true', help="do not install BasicSR's dependencies")
    parser.add_argument('--force', action='store_true', help='reinstall it where it is installed already')
    args = parser.parse_args(argv)
    installed = None if args.force or args.wheel_dir else installed_version()
    if installed == VERSION:
        print(f'basicsr {VERSION} is installed already; --force installs it again')
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix='basicsr-') as folder:
            return _install(args, Path(folder))
    except InstallError as error:
        print(f'install_basicsr: {error}', file=sys.stderr)
        return 1


def _install(args: argparse.Namespace, work: Path) -> int:
    archive = args.sdist.read_bytes() if args.sdist else fetch(pip_settings())
    check(archive, str(args.sdist or ARCHIVE))
    source = unpack(archive, work)
    correct(source)
    wheel = build(source, args.wheel_dir or work / 'wheel')
    if args.wheel_dir:
        print(wheel)
        return 0
    options = [*(['--no-deps'] if args.no_deps else []), *(['--force-reinstall'] if args.force else [])]
    return _pip('install', *options, str(wheel)).returncode


def installed_version() -> str | None:
    """The version of basicsr in this environment, or None."""
    try:
        return importlib.metadata.version('basicsr')
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_settings() -> dict[str, str]:
    """pip's effective settings for ``pip install``: environment before command before global, by option name."""
    answer = _pip('config', 'list', capture=True)
    if answer.returncode:
        raise InstallError(f'`pip config list` failed:\n{answer.stdout.strip()}\nRemedy: python -m ensurepip')
    ranks = {'global': 0, 'install': 1, ':env:': 2}
    found: dict[str, tuple[int, str]] = {}
    for line in answer.stdout.splitlines():
        key, _, value = line.partition('=')
        section, _, option = key.rpartition('.')
        rank = ranks.get(section, -1)
        if rank >= found.get(option, (0, ''))[0]:
            found[option] = (rank, str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in found.items()}


def fetch(settings: dict[str, str]) -> bytes:
    """The source archive's bytes, from the first of pip's indexes and link folders that has it.

    Args:
        settings: as `pip_settings` returns them; index-url, extra-index-url, find-links, no-index, cert, proxy count.

    Raises:
        InstallError: none has it; the message lists where it was looked for.
    """
    opener = _opener(settings)
    places = [(url, False) for url in settings.get('find-links', '').split()]
    if settings.get('no-index', 'false').lower() not in ('1', 'true', 'yes', 'on'):
        indexes = [settings.get('index-url', PYPI), *settings.get('extra-index-url', '').split()]
        places += [(index.rstrip('/') + '/basicsr/', True) for index in indexes]
    tried = []
    for url, is_page in places:
        try:
            found = _find_archive(opener, url, is_page)
            if found is not None:
                return _read(opener, found)
            tried.append(f'{_without_login(url)}: has no {ARCHIVE}')
        except (OSError, ValueError) as error:
            tried.append(f'{_without_login(url)}: {error}')
    raise InstallError(
        f'{ARCHIVE} was not found:\n  ' + '\n  '.join(tried) + '\nRemedy: correct the index (`pip config list`), or '
        'download the file by hand and pass --sdist FILE.'
    )


def _find_archive(opener: urllib.request.OpenerDirector, url: str, is_page: bool) -> str | None:
    """The archive's address in a folder of files or on an index's page."""
    if '://' not in url:
        url = Path(url).expanduser().resolve().as_uri()
    if url.startswith('file:'):
        folder = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        if (folder / ARCHIVE).is_file():
            return (folder / ARCHIVE).as_uri()
        if not is_page and folder.is_dir():
            return None
        url = (folder / 'index.html' if folder.is_dir() or is_page else folder).as_uri()
    links = _Links()
    links.feed(_read(opener, url).decode('utf-8', 'replace'))
    for link in links.found:
        address = urllib.parse.urldefrag(urllib.parse.urljoin(url, link)).url
        if PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name == ARCHIVE:
            return address
    return None


class _Links(HTMLParser):
    """Collects the addresses of an HTML page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == 'a' and name == 'href' and value]


def _opener(settings: dict[str, str]) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if 'cert' in settings:
        context.load_verify_locations(settings['cert'])
    elif not context.get_ca_certs():  # a Python without the system's certificates: use those that come with pip
        try:
            from pip._vendor import certifi
        except ImportError:
            pass
        else:
            context.load_verify_locations(certifi.where())
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if 'proxy' in settings:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(('http', 'https'), settings['proxy'])))
    return urllib.request.build_opener(*handlers)


def _read(opener: urllib.request.OpenerDirector, url: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('https', 'http', 'file'):
        raise ValueError(f'addresses of the kind {parts.scheme!r} are not supported')
    headers = {'Accept': 'text/html, */*;q=0.1', 'User-Agent': 'hat-plugin install_basicsr'}
    if parts.username:
        login = f'{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or "")}'
        headers['Authorization'] = 'Basic ' + base64.b64encode(login.encode()).decode()
    request = urllib.request.Request(_without_login(url), headers=headers)
    with opener.open(request, timeout=TIMEOUT) as answer:
        return bytes(answer.read())


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition('@')[2]))


def check(archive: bytes, source: str) -> None:
    """Refuse an archive that is not the one this script knows.

    Raises:
        InstallError: with both sums.
    """
    found = hashlib.sha256(archive).hexdigest()
    if found != SHA256:
        raise InstallError(
            f'{source}: SHA-256 is {found}, not {SHA256}. The download is damaged or is another file; '
            f'try again, or pass --sdist with {ARCHIVE} from {PYPI}/basicsr/.'
        )


def unpack(archive: bytes, folder: Path) -> Path:
    """Write the archive's plain files below `folder` and return the source folder; links and odd paths are refused.

    Raises:
        InstallError: a member would land outside, or is neither a file nor a folder.
    """
    copy = folder / ARCHIVE
    copy.write_bytes(archive)
    with tarfile.open(copy, 'r:gz') as tar:
        for member in tar:
            place = PurePosixPath(member.name)
            if place.is_absolute() or '..' in place.parts or not (member.isfile() or member.isdir()):
                raise InstallError(f'{ARCHIVE}: refused to unpack {member.name!r}')
            handle = tar.extractfile(member)
            if handle is not None:
                target = folder.joinpath(*place.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(handle.read())
    return folder / f'basicsr-{VERSION}'


def correct(source: Path) -> None:
    """Correct the packaging as the module's docstring lists.

    Raises:
        InstallError: a passage that is to be corrected is not there.
    """
    setup = (source / 'setup.py').read_text(encoding='utf-8')
    before, start, rest = setup.partition('def get_version():')
    _, end, after = rest.partition('\ndef make_cuda_ext')
    if not (start and end):
        raise InstallError(f'{ARCHIVE}: setup.py is not the one that this script knows')
    setup = before + GET_VERSION + end + after
    setup = _replace(setup, "setup_requires=['cython', 'numpy', 'torch'],", '')
    (source / 'setup.py').write_text(setup, encoding='utf-8')
    requirements = (source / 'requirements.txt').read_text(encoding='utf-8')
    requirements = _replace(requirements, 'tb-nightly\n', 'tensorboard\nsetuptools; python_version >= "3.12"\n')
    (source / 'requirements.txt').write_text(requirements, encoding='utf-8')
    (source / 'pyproject.toml').write_text(BUILD_SYSTEM, encoding='utf-8')


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise InstallError(f'{ARCHIVE}: {old!r} stands {text.count(old)} times where it was expected once')
    return text.replace(old, new)


def build(source: Path, wheel_dir: Path) -> Path:
    """Let pip build the wheel of a corrected source folder; setuptools is all that its isolated build downloads.

    Raises:
        InstallError: pip fails; the message has its output.
    """
    wheel_dir.mkdir(parents=True, exist_ok=True)
    done = _pip('wheel', '--no-deps', '--wheel-dir', str(wheel_dir), str(source), capture=True)
    if done.returncode:
        raise InstallError(f'pip could not build the wheel:\n{done.stdout.strip()}')
    return (wheel_dir / f'basicsr-{VERSION}-py3-none-any.whl').resolve(strict=True)


def _pip(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pip; `capture` keeps its output (setuptools has many warnings for a setup.py of 2022) from the user."""
    left_out = {'BASICSR_EXT', 'PIP_QUIET'} if capture else {'BASICSR_EXT'}  # no compiled extras; quiet lists nothing
    return subprocess.run(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments],
        env={name: value for name, value in os.environ.items() if name not in left_out},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
    )


if __name__ == '__main__':
    sys.exit(main())
