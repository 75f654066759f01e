"""One process or many: torchrun or Slurm, nccl on GPUs and gloo without."""

from __future__ import annotations

import datetime
import os
import subprocess
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hat_plugin.errors import HatPluginError

# Ranks meet at the end of a validation; one may have the larger pictures. NCCL's own 10 minutes are too short.
TIMEOUT = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among all: its rank, how many there are, and which on this machine it is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def distributed(self) -> bool:
        return self.size > 1 or dist.is_initialized()

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def initialise(launcher: str, *, backend: str | None = None, port: int | None = None, local_rank: int = 0) -> World:
    """Join the other processes.

    Args:
        launcher: 'none', 'pytorch' (torchrun sets the environment) or 'slurm' (srun does).
        backend: 'nccl' or 'gloo'; nccl is replaced by gloo where there is no CUDA.
        port: rendezvous port under Slurm.
        local_rank: used where the environment has no LOCAL_RANK (torch.distributed.launch of old).

    Raises:
        HatPluginError: the launcher's environment variables are absent.
    """
    if launcher == 'none':
        return World()
    if launcher == 'slurm':
        _slurm_environment(port)
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        start = 'torchrun --nproc_per_node=N -m hat_plugin.train ...' if launcher == 'pytorch' else 'srun ...'
        raise HatPluginError(
            f'--launcher {launcher}: {", ".join(missing)} not set in the environment; start with {start}'
        )
    local = int(os.environ.get('LOCAL_RANK', local_rank))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        if backend in (None, 'nccl'):
            backend = 'cpu:gloo,cuda:nccl'  # what ranks say to one another about files and signals waits for no GPU
    else:
        backend = 'gloo'
    dist.init_process_group(backend, timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size(), local)


def _slurm_environment(port: int | None) -> None:
    """Translate srun's variables to torch's."""
    try:
        rank, size = os.environ['SLURM_PROCID'], os.environ['SLURM_NTASKS']
        nodes = os.environ['SLURM_NODELIST']
    except KeyError as error:
        raise HatPluginError(
            f'--launcher slurm: {error.args[0]} not set in the environment; start with srun'
        ) from error
    if 'MASTER_ADDR' not in os.environ:
        listing = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
        os.environ['MASTER_ADDR'] = listing.stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', str(port or 29500))
    os.environ.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=os.environ.get('SLURM_LOCALID', '0'))


def current_world() -> World:
    """The world as it is now (also when BasicSR's own pipeline made it)."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get('LOCAL_RANK', 0)))


def finish() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gather_objects(item: Any) -> list[Any]:
    """The item of every rank, in rank order, on every rank."""
    world = current_world()
    if not world.distributed:
        return [item]
    items: list[Any] = [None] * world.size
    dist.all_gather_object(items, item)
    return items


def from_main(item: Any) -> Any:
    """Rank 0's item, on every rank."""
    if not current_world().distributed:
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_rank(flag: bool, device: torch.device | str = 'cpu') -> bool:
    """Whether the flag is set on any rank; through `device` only where ranks cannot speak without (nccl alone)."""
    if not current_world().distributed:
        return flag
    host = 'cpu:' in dist.get_backend_config()
    value = torch.tensor(float(flag), device='cpu' if host else device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
