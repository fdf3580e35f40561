"""One process or many: the same calls work without a process group, with gloo and with NCCL."""

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar('T')


def init(device: str = 'auto') -> torch.device:
    """Choose this process's device and, under torchrun or srun, join the process group.

    `device` is auto (CUDA, else Apple's MPS, else CPU), or a name such as cuda, cuda:1, mps, cpu.
    Float32 arithmetic is float32 from here on: CUDA's TF32 is off.
    Without the environment of either (WORLD_SIZE absent or 1) no process group is made.
    Raises ValueError when the device asked for does not exist, and when the environment speaks of
    several processes but not of how they find each other.
    """
    os.environ.update(launch(os.environ))
    chosen = _device(device)
    torch.backends.cudnn.allow_tf32 = False   # float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = False
    if whole_number(os.environ, 'WORLD_SIZE', 1) > 1 and not torch.distributed.is_initialized():
        backend = 'nccl' if chosen.type == 'cuda' else 'gloo'
        torch.distributed.init_process_group(backend, timeout=datetime.timedelta(hours=1))
    return chosen


def _device(name: str) -> torch.device:
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if _has_mps() else 'cpu'
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f'--device={name} is not a device: use auto, cuda, cuda:1, mps or cpu') from None
    if device.type == 'cuda':
        return _gpu(name, device.index)
    if device.type == 'mps' and not _has_mps():
        raise ValueError(f'--device={name}: no MPS device was found here; use --device=cpu or auto')
    if device.type not in ('cpu', 'mps'):
        raise ValueError(f'--device={name} is not supported: use auto, cuda, cuda:1, mps or cpu')
    return device


def _gpu(name: str, index: int | None) -> torch.device:
    """Choose the GPU of this number (None: that of the process's local rank) as the current one."""
    if not torch.cuda.is_available():
        raise ValueError(f'--device={name}: no CUDA device was found here; use --device=cpu or '
                         f'auto')
    local_rank = whole_number(os.environ, 'LOCAL_RANK', 0)
    count = torch.cuda.device_count()
    if index is None:   # Slurm may show each of its tasks one GPU, its own
        index = 0 if count == 1 and 'SLURM_LOCALID' in os.environ else local_rank
    if index >= count:
        raise ValueError(f'--device={name}: process {local_rank} needs GPU {index}, but only '
                         f'{count} were found')
    device = torch.device('cuda', index)
    torch.cuda.set_device(device)
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def launch(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torch.distributed that the launcher has not set, {} if all are there.

    torchrun sets them; for the tasks of a step of Slurm they follow from Slurm's variables. Raises
    ValueError for several processes of which it is not known how they find each other.
    """
    found: dict[str, str] = {}
    size = whole_number(environment, 'WORLD_SIZE', 0)
    tasks = whole_number(environment, 'SLURM_STEP_NUM_TASKS', 1)
    if size == 0 and tasks > 1:
        size, found = tasks, _launch_of_slurm(environment)
    started = next((name for name in ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE')
                    if whole_number(environment, name, 1) > 1), None)
    if size == 0 and started is not None:
        size = whole_number(environment, started, 1)
        raise ValueError(f'{started}={size}: mpirun has started {size} processes, which would all '
                         f'do the same work; start one command with torchrun instead')
    if size > 1:
        found = {'MASTER_ADDR': 'localhost', **found}
        given = {**found, **{name: value for name, value in environment.items() if value}}
        for name in ('RANK', 'MASTER_PORT'):
            if name not in given:
                raise ValueError(f'WORLD_SIZE={size} says that this is one of {size} processes, '
                                 f'but {name} is not set: start the command with torchrun, or set '
                                 f'RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT too')
        if not whole_number(given, 'RANK', 0) < size:
            raise ValueError(f'RANK={given["RANK"]} is not below WORLD_SIZE={size}')
    return {name: value for name, value in found.items() if not environment.get(name)}


def _launch_of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torch.distributed for a task that srun has started.

    All tasks of a step agree on a port, which follows from the numbers of the job and of the step.
    """
    step = (whole_number(environment, 'SLURM_JOB_ID', 0)
            + 1009 * whole_number(environment, 'SLURM_STEP_ID', 0))
    found = {'WORLD_SIZE': environment['SLURM_STEP_NUM_TASKS'],
             'RANK': environment.get('SLURM_PROCID', ''),
             'LOCAL_RANK': environment.get('SLURM_LOCALID', '0'),
             'MASTER_PORT': str(20000 + step % 20000)}
    if whole_number(environment, 'SLURM_STEP_NUM_NODES', 1) > 1:
        nodes = environment.get('SLURM_STEP_NODELIST', '')
        # node[01-04,07],other: the first is node01
        match = re.match(r'([^,\[]+)(?:\[([^-,\]]+))?', nodes)
        if match is None:
            raise ValueError('SLURM_STEP_NODELIST is not set: set MASTER_ADDR to the first node')
        found['MASTER_ADDR'] = match[1] + (match[2] or '')
    return {name: value for name, value in found.items() if value}


def whole_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """Return a variable of the environment as a number, `default` if it is absent or empty."""
    value = environment.get(name) or str(default)
    if not re.fullmatch(r'\d{1,9}', value):
        raise ValueError(f'the environment variable {name} is {value!r}, not a whole number')
    return int(value)


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def get_rank() -> int:
    """Return the number of this process; 0 without a process group."""
    return torch.distributed.get_rank() if _active() else 0


def get_world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return torch.distributed.get_world_size() if _active() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if _active():
        torch.distributed.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all ranks, in place, and return it."""
    if _active():
        torch.distributed.all_reduce(tensor)
    return tensor


def gather_objects(value: T) -> list[T]:
    """Return the picklable `value` of every rank, in the order of the ranks, on every rank."""
    if not _active():
        return [value]
    values = [value] * get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def gather(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, of one shape, in their order, on rank 0; [] elsewhere."""
    if get_world_size() == 1:
        return [tensor]
    if get_rank() > 0:
        torch.distributed.gather(tensor)
        return []
    tensors = [torch.empty_like(tensor) for _ in range(get_world_size())]
    torch.distributed.gather(tensor, tensors)
    return tensors


@contextlib.contextmanager
def errors_on_all(*kinds: type[Exception]) -> Iterator[None]:
    """Run a block on every rank; where it fails on any rank, all of them raise ValueError.

    An exception of `kinds`, ValueError if none are given, becomes a ValueError with its text, that
    of the lowest rank on all ranks, so that none waits for a rank that gave up. Any other exception
    passes on that rank alone. Collective: the end of the block waits for all ranks.
    """
    caught, error = kinds or (ValueError,), None
    try:
        yield
    except caught as failure:
        error = str(failure)
    errors = [found for found in gather_objects(error) if found is not None]
    if errors:
        raise ValueError(errors[0])


def on_rank_0(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and return its result, which must be picklable, on every rank.

    Its ValueError or OSError is a ValueError on every rank; in a single process it stays what it
    is. Collective.
    """
    if get_world_size() == 1:
        return function()
    found: T | None = None
    with errors_on_all(ValueError, OSError):
        if get_rank() == 0:
            found = function()
    return gather_objects(found)[0]  # type: ignore[return-value]  # rank 0 has it


def is_loss_of_a_peer(error: BaseException) -> bool:
    """Return whether an error of a collective call comes from the end of another process."""
    if get_world_size() == 1:
        return False
    known = ('Connection closed by peer', 'Connection reset by peer', 'gloo/transport', 'NCCL')
    return (isinstance(error, torch.distributed.DistError)
            or isinstance(error, RuntimeError) and any(words in str(error) for words in known))


class Votes:
    """A vote of all ranks, over gloo on the CPU, so that the device does not wait."""

    def __init__(self) -> None:
        self.group = torch.distributed.new_group(backend='gloo') if _active() else None

    def any(self, mine: bool) -> bool:
        """Return whether any rank says yes. Collective."""
        return self.each(mine)[0]

    def each(self, *mine: bool) -> list[bool]:
        """Return whether any rank says yes, for each of several questions at once. Collective."""
        if self.group is None:
            return list(mine)
        votes = torch.tensor(mine, dtype=torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return [bool(vote) for vote in votes]


def print0(text: str) -> None:
    """Print a line on rank 0 only."""
    if get_rank() == 0:
        print(text, flush=True)


def shutdown() -> None:
    """Leave the process group, if there is one."""
    # With gloo of torch 2.6, about half of these calls by two ranks never return. Without the call
    # a process may abort at its very end: seldom with 2.6, in one run of eight with 2.13.
    if _active() and not torch.__version__.startswith('2.6.'):
        torch.distributed.destroy_process_group()
