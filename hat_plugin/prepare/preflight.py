"""What can be known before the work begins: sizes that do not fit, and the room that is needed."""

from __future__ import annotations

from hat_plugin.errors import DataError
from hat_plugin.prepare.cutting import fitting_sizes, misfit, rectangles
from hat_plugin.prepare.pixels import picture_size
from hat_plugin.prepare.plan import Output, Plan

# PNG against raw pixels, over photographs: 0.57 to 0.65. A little less is asked for, because refusing wrongly is worse
# than stopping later: a full disk loses nothing that was done.
_PNG_SHARE = 0.5


def check_sizes(plan: Plan, wanted: tuple[Output, ...], *, skip_bad: bool) -> list[tuple[int, int]]:
    """Read all files' heads and see that published degraded pictures fit their ground truth.

    Returns:
        (width, height) of the pictures that can be read.

    Raises:
        DataError: files are unreadable or do not fit (all of them listed), and `skip_bad` is not set.
    """
    sizes, problems = [], []
    scales = sorted({output.scale for output in wanted if output.role == 'lq'})
    for picture in plan.pictures:
        try:
            width, height = picture_size(picture.hr)
            sizes.append((width, height))
            for scale in scales:
                if scale not in picture.lr:
                    continue
                size = picture_size(picture.lr[scale])
                if size not in fitting_sizes((width, height), scale):
                    problems.append(misfit(picture, scale, size, (width, height)))
        except DataError as error:
            problems.append(str(error))
    if problems and not skip_bad:
        shown = [*problems[:20], *([f'... and {len(problems) - 20} more'] if len(problems) > 20 else [])]
        lines = '\n'.join(f'  - {line}' for line in shown)
        raise DataError(
            f'{len(problems)} files cannot be used; nothing was begun. Replace them and run the same again, or leave '
            f'them out with --skip-bad:\n{lines}'
        )
    return sizes


def check_sources_stay(plan: Plan, wanted: tuple[Output, ...]) -> None:
    """Raises DataError where an output would take the place of a folder that its own source pictures lie in."""
    folders = {file.parent.resolve() for picture in plan.pictures for file in picture.files()}
    for output in wanted:
        place = (plan.folder / output.name).resolve()
        inside = next((folder for folder in sorted(folders) if folder.is_relative_to(place)), None)
        if inside is not None:
            raise DataError(f'{place}: holds the pictures to be prepared ({inside}); choose another place with -o')


def bytes_needed(plan: Plan, wanted: tuple[Output, ...], sizes: list[tuple[int, int]]) -> int:
    """A careful estimate of what the outputs will take, less what a killed run has left of them."""
    total = 0.0
    for width, height in sizes:
        cut_height, cut_width = (side - side % plan.cut.modulus for side in (height, width))
        pixels = sum(rectangle[2] * rectangle[3] for rectangle in rectangles((cut_height, cut_width), plan.cut))
        for output in wanted:
            total += 3 * pixels / output.scale**2 * (1 if output.storage == 'raw' else _PNG_SHARE)
    asides = [plan.folder / f'.{output.name}.part' for output in wanted]
    there = sum(path.stat().st_size for aside in asides for path in aside.glob('*') if path.is_file())
    return max(0, int(total) - there)
