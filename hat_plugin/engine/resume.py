"""How far a run is, and going on from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hat_plugin.engine import distributed
from hat_plugin.engine.checkpoint import check_whole, numbered_states, read_torch_file
from hat_plugin.engine.stages import Stages
from hat_plugin.errors import CheckpointError


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        iteration: optimiser steps done, skipped ones included.
        samples: training samples seen over all ranks; it says where in the stream of samples the run is.
        seed: seed of the run; None in states that BasicSR wrote.
        validated: the last iteration that was validated.
    """

    iteration: int = 0
    samples: int = 0
    seed: int | None = None
    validated: int = -1

    def state(self) -> dict[str, Any]:
        """What goes into a training state."""
        return {'samples': self.samples, 'seed': self.seed, 'validated': self.validated}


def resume(model: Any, opt: dict[str, Any], stages: Stages, logger: Any) -> Progress:
    """Restore the model from ``path: resume_state`` or, with --auto_resume, the newest good checkpoint of the run.

    Args:
        model: built from the options.
        opt: the options.
        stages: samples an iteration; they tell where in the stream of samples a state of BasicSR's is.
        logger: for warnings about what was skipped.

    Collective: with several ranks all resume from the same state.

    Raises:
        CheckpointError: the state asked for is not usable; or there are states, and none of them is.
    """
    wanted = opt['path'].get('resume_state')
    candidates: list[Path] = []
    if opt['auto_resume']:
        candidates = [path for _, path in numbered_states(opt['path']['training_states'])]
    candidates = candidates or ([Path(wanted)] if wanted else [])
    problems = []
    for path in distributed.from_main(candidates):
        progress, failure = Progress(), None
        try:
            progress = _resume_from(model, path, stages, logger)
        except CheckpointError as error:
            failure = str(error)
        # All ranks or none: one that fell back alone (a file that its machine cannot see) would train something else.
        failure = next((text for text in distributed.gather_objects(failure) if text), None)
        if failure is None:
            return progress
        if not opt['auto_resume'] or path == Path(wanted or ''):
            raise CheckpointError(failure)
        logger.warning(f'{path} cannot be resumed from, an older checkpoint is tried: {failure}')
        problems.append(f'{path.name}: {failure}')
    if problems:
        raise CheckpointError(
            '\n'.join(
                [
                    f'--auto_resume: none of the {len(problems)} training states of {opt["name"]} is usable:',
                    *(f'  - {problem}' for problem in problems),
                    f'To begin anew, move {opt["path"]["experiments_root"]} away or change name: in the option file.',
                ]
            )
        )
    return Progress()


def _resume_from(model: Any, path: Path, stages: Stages, logger: Any) -> Progress:
    check_whole(path)
    state = read_torch_file(path)
    if not isinstance(state, dict) or not {'iter', 'optimizers'} <= state.keys():
        raise CheckpointError(f'{path}: not a training state')
    if path.stem.isdecimal() and int(path.stem) != state['iter']:
        raise CheckpointError(f'{path}: holds iteration {state["iter"]}; it has been renamed or overwritten')
    folders, beside = model.opt['path'], path.parent.parent / 'models'
    own = folders['models']
    folders['models'] = str(beside) if beside.is_dir() else own  # the state may be another run's
    try:
        model.resume_training(state)
    except CheckpointError:
        raise
    except Exception as error:  # a file of another program may hold anything under these keys
        raise CheckpointError(f'{path}: not a training state of this kind ({type(error).__name__}: {error})') from error
    finally:
        folders['models'] = own
    saved = state.get('progress') or {}
    samples = saved.get('samples', stages.samples_until(state['iter']))
    logger.info(f'Resuming training from epoch: {state.get("epoch", 0)}, iter: {state["iter"]}.')
    return Progress(state['iter'], samples, saved.get('seed'), saved.get('validated', int(state['iter'])))
