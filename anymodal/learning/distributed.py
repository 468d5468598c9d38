"""Many processes, one run: who they are, how they share the model, and what the first of them writes."""

import copy
import logging
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from anymodal.learning.checkpoints import (
    MANIFEST,
    cannot_save,
    checksums,
    sync_file,
    sync_folder,
    write_manifest,
)
from anymodal.learning.config import RunConfig
from anymodal.model.unified import AnyModal

Sums = dict[str, str]
LOST = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
LOST_WORDS = ("/gloo/", "Application timeout caused pair closure")  # gloo's own errors are of no class
FAREWELL_S = 2.0


def processes_of(run: RunConfig) -> tuple[int, int]:
    """Return processes a machine and machines: as torchrun or SLURM started them, else `run.devices` on this one.

    Raises:
        ValueError: the run asks for another number than was started.
    """
    local, nodes = run.devices, 1
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // local
    elif SLURMEnvironment.detect():
        nodes = int(os.environ["SLURM_NNODES"])
        local = int(os.environ["SLURM_NTASKS"]) // nodes
    if run.devices not in (1, local):
        raise ValueError(
            f"run.devices must be what the launcher started, {local} processes a machine, got {run.devices}; "
            "leave it out."
        )
    if run.batch_size % (local * nodes):
        raise ValueError(
            f"run.batch_size counts over all processes and must be a multiple of their number {local * nodes}, got "
            f"{run.batch_size}; choose another."
        )
    return local, nodes


def strategy_of(run: RunConfig, world: int, *, one_backward: bool = True) -> Strategy | str:
    """Return how processes share the work; `one_backward` says that every backward pass of a step reaches all weights.

    Raises:
        ValueError: the run asks for what sharded weights do not have.
    """
    patience = timedelta(seconds=run.peer_timeout_s)
    if run.strategy == "fsdp":
        if run.ema_decay:
            raise ValueError("run.ema_decay needs whole weights in every process; set it to 0, or run.strategy to ddp.")
        return ShardedStrategy(world, patience)
    if world == 1:
        return "auto"
    return ReplicatedStrategy(
        find_unused_parameters=not one_backward, process_group_backend=_backend(), timeout=patience
    )


@contextmanager
def peers_explained(run: RunConfig, strategy: Strategy | None = None) -> Iterator[None]:
    """Say what to do where the processes have lost each other, and end those that `strategy` has started.

    Raises:
        ConnectionError: one has died, hangs, or never came.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, LOST) or any(words in str(error) for words in LOST_WORDS)):
            raise
        _end_started(strategy)
        what = str(error).splitlines()[0]
        raise ConnectionError(
            f"the processes of this run have lost each other ({what}): one has ended, or did not answer for "
            f"{run.peer_timeout_s:g} s; see what it wrote last, raise run.peer_timeout_s if it was only slow, and run "
            "the same command again."
        ) from error


def _end_started(strategy: Strategy | None) -> None:
    """End the processes that this one has started and that do not end by themselves: a hung one would stay."""
    for process in getattr(strategy and strategy.launcher, "procs", ()):
        try:
            process.wait(FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _backend() -> str:
    """Return what carries tensors between processes: those on the host travel past the GPU, which nobody waits for."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


class ReplicatedStrategy(DDPStrategy):
    """Weights in every process, which resume from the checkpoint that the first one found whole, as shards do."""

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what the first process names."""
        return super().load_checkpoint(self.broadcast(checkpoint_path), weights_only)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 (arXiv:2304.11277) whose checkpoints are whole or absent, and checked by content.

    Lightning's own writes in place, past every `CheckpointIO`: a kill leaves half a folder named like a whole one.
    """

    def __init__(self, world: int, patience: timedelta) -> None:
        """Shard the weights over all processes, which wait so long for each other."""
        super().__init__(
            data_parallel_size=world, tensor_parallel_size=1, process_group_backend=_backend(), timeout=patience
        )

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write every process's shard beside the target, flush, note the checksums, rename.

        Raises:
            OSError: a disk is full or read-only; the checkpoints before this one stay as they were.
        """
        path = Path(self.broadcast(filepath))
        partial = path.with_name(f".{path.name}.partial")
        if self.global_rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        written: Sums | str
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            written = checksums(self._own(partial))
        except (Exception, CheckpointException) as error:  # any, such that no other process waits for this one
            written = reason(error)
        everyone: list[Sums | str] = [written] * self.world_size
        dist.all_gather_object(everyone, written)
        faults = [each for each in everyone if isinstance(each, str)]
        if self.global_rank == 0:
            if faults:
                shutil.rmtree(partial, ignore_errors=True)
            else:
                sums = {name: digest for each in everyone if isinstance(each, dict) for name, digest in each.items()}
                self._commit(partial, path, sums)
        self.barrier()
        if faults:
            raise cannot_save(path, faults[0])

    def _own(self, folder: Path) -> list[Path]:
        """Return what this process has written, on the disk for good; the first answers for what belongs to all."""
        prefix = f"__{self.global_rank}_"
        mine = [
            path
            for path in sorted(folder.iterdir())
            if path.name.startswith(prefix) or (self.global_rank == 0 and not path.name.startswith("__"))
        ]
        for path in mine:
            sync_file(path)
        return mine

    def _commit(self, partial: Path, path: Path, sums: Sums) -> None:
        write_manifest(partial / MANIFEST, sums)
        sync_folder(partial)
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
        sync_folder(path.parent)


def reason(error: BaseException) -> str:
    """Say in a line what went wrong; a CheckpointException holds what went wrong in every process."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"process {rank}: {fault[0]}" for rank, fault in error.failures.items())
    return str(error)


def sharded(model: AnyModal, mesh: DeviceMesh) -> AnyModal:
    """Return the model with the weights of every block, and of all else, spread over the mesh; `model` stays whole.

    A process copies no more of the weights than its own share.
    """
    shards = copy.deepcopy(model, {id(each): _without_values(each) for each in model.parameters()})
    for block in shards.transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(shards, mesh=mesh)
    names = {name: id(each) for name, each in shards.named_parameters(remove_duplicate=False)}  # of a tied one, two
    whole = dict(model.named_parameters())
    shares = {id(each): _share(whole[name], cast(DTensor, each)) for name, each in shards.named_parameters()}
    shards.load_state_dict({name: shares[each] for name, each in names.items()}, strict=False, assign=True)
    return shards


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _share(whole: Tensor, place: DTensor) -> nn.Parameter:
    """Return a copy of this process's rows of a tensor, which lies as `place` does."""
    mesh = place.device_mesh
    first = mesh.get_local_rank() * -(-len(whole) // mesh.size())
    rows = whole.detach()[first : first + len(place.to_local())].to(mesh.device_type, copy=True)
    share = DTensor.from_local(rows, mesh, place.placements, shape=place.shape, stride=place.stride())
    return nn.Parameter(share, requires_grad=place.requires_grad)


def gather_into(whole: nn.Module, shards: nn.Module) -> None:
    """Bring sharded weights together in `whole` on the first process; every process must call it."""
    state = get_model_state_dict(shards, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state:
        whole.load_state_dict(state)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that may be spread over processes as every process may read it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, the tensor itself where there is one."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Return the largest of all processes, the tensor itself where there is one."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def _reduced(tensor: Tensor, how: Any) -> Tensor:
    if not dist.is_initialized():
        return tensor
    result = tensor.clone()
    dist.all_reduce(result, op=how)
    return result


def count_over_ranks(counts: Mapping[str, int]) -> Counter[str]:
    """Return what all processes have counted together; every process must call it."""
    everyone: list[Any] = [dict(counts)]
    if dist.is_initialized():
        everyone *= dist.get_world_size()
        dist.all_gather_object(everyone, dict(counts))
    return sum((Counter(each) for each in everyone), Counter[str]())


def is_first() -> bool:
    """Tell whether this process is the one that writes and prints, before and while processes know each other."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def quiet_unless_first() -> None:
    """Let only the first process tell what all of them do."""
    if not is_first():
        logging.getLogger("anymodal").setLevel(logging.ERROR)
