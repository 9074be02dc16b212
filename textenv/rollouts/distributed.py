"""Data-parallel training: the processes that ``accelerate launch`` or ``torchrun`` has started, as one run.

Every process writes its own rows of the batch. What they wrote is then exchanged, kilobytes next to the gradients, so
that advantages, minibatches, metrics and the KL coefficient come from the whole batch and are the same everywhere; of
each minibatch a process computes the gradients of its share. A run on ``n`` processes is therefore the run of one
process with the same batch, up to rounding.

Accelerate starts the processes, connects them and wraps the policy for DDP. Its own FSDP needs GPUs, so the sharding
is torch's ``fully_shard``, on CPU and GPU alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from textenv.models.policy import Evaluation, TextPolicy
from textenv.types import TextEnvError

__all__ = ["ALONE", "Processes", "connect", "fill", "full"]

T = TypeVar("T")
_NETWORK = re.compile(r"gloo|nccl|connection|socket|broken pipe|timed out|timeout|process group", re.IGNORECASE)


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Number of this one, from 0. The process of rank 0 writes files and prints.
        size: How many there are.
        device: Where this one computes; None in a run of one process: where its model is.
        sharded: Whether each keeps only its part of parameters, gradients and optimizer state (FSDP); else each keeps
            them all (DDP).
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    sharded: bool = False
    _accelerator: Any = None
    _peers: tuple[tuple[str, int], ...] = ()  # host and process id of each rank
    _timeout: timedelta | None = None
    _group: Any = None  # the connection, None for that of the run

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, name: str, total: int) -> int:
        """Return each process's share of a total.

        Raises:
            TextEnvError: It does not divide.
        """
        if total % self.size:
            raise TextEnvError(
                f"{name}={total} on {self.size} processes: expected a multiple of {self.size}, so that each gets as "
                "many; it counts those of all processes together."
            )
        return total // self.size

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of a sequence, in its order."""
        share = self.share("items", len(items))
        return items[self.rank * share : (self.rank + 1) * share]

    def counts(self, number: int) -> list[int]:
        """Return the number that each process gives, in the order of their ranks."""
        if self.size == 1:
            return [number]
        mine = torch.tensor([number], device=self.device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(every, mine, group=self._group)
        return [int(theirs) for theirs in every]

    def gather(self, item: T) -> list[T]:
        """Return what each process gives, in the order of their ranks."""
        if self.size == 1:
            return [item]
        every: list[Any] = [None] * self.size
        distributed.all_gather_object(every, item, group=self._group)
        return every

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over the processes of values by name, the same names everywhere."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        distributed.all_reduce(total, group=self._group)
        return dict(zip(values, total.tolist(), strict=True))

    def beside(self) -> Processes:
        """Return the same processes with a second connection, for a thread; every process calls it.

        Over one connection all exchange things in one order, which two threads do not keep. This one counts, gathers
        and adds up on the CPU, and trains nothing.
        """
        if self.size == 1:
            return self
        group = distributed.new_group(backend="gloo", timeout=self._timeout)
        return dataclasses.replace(self, device=torch.device("cpu"), _accelerator=None, _group=group)

    def trainable(self, policy: TextPolicy) -> nn.Module:
        """Return ``policy.evaluate`` as a module whose backward passes leave the mean gradient of all processes.

        With FSDP the parameters of ``policy`` are sharded from here on: an optimizer takes them after this call, and
        whatever reads them outside the module does so inside ``whole``.

        Raises:
            TextEnvError: The policy is elsewhere, or FSDP cannot shard it.
        """
        network = _Evaluate(policy)
        if self.size == 1:
            return network
        if policy.lm.device != self.device:
            raise TextEnvError(
                f"The model is on {policy.lm.device}, but process {self.rank} of {self.size} computes on {self.device}:"
                f" give the environment model=CausalLM.from_pretrained(..., device={str(self.device)!r})."
            )
        if not self.sharded:
            prepared: nn.Module = self._accelerator.prepare_model(network, device_placement=False)
            return prepared
        from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 (slow, and seldom needed)
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        if len(kinds := {parameter.dtype for parameter in policy.parameters()}) > 1:
            raise TextEnvError(f"The policy's weights are of {sorted(map(str, kinds))}; FSDP needs one data type.")
        assert self.device is not None
        # One group: rollouts and the training forward read parameters past the layers' own forward methods, whose
        # hooks would gather a layer at a time.
        fully_shard(network, mesh=init_device_mesh(self.device.type, (self.size,)))
        return network

    @contextlib.contextmanager
    def whole(self, network: nn.Module) -> Iterator[None]:
        """Let the policy inside a ``trainable`` be read outside of it: gather its parameters, and free them after.

        Every process enters it, and none may write to a parameter or ask for a ``state_dict`` in it.
        """
        if not self._shards(network):
            yield
            return
        sharded: Any = network
        sharded.unshard()
        try:
            yield
        finally:
            sharded.reshard()

    @contextlib.contextmanager
    def accumulate(self, network: nn.Module, *, last: bool) -> Iterator[None]:
        """Add up gradients, forward and backward inside, and exchange them in the last pass of a minibatch."""
        sharded: Any = network
        if self._shards(network):
            sharded.set_requires_gradient_sync(last)
            yield
        elif self.size > 1 and not last:
            with sharded.no_sync():
                yield
        else:
            yield

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Turn the loss of another process into an error that says what to do.

        It is noticed by a broken connection, or by the signal with which the launcher ends the other processes.

        Raises:
            TextEnvError: Another process is gone, or did not answer in time.
        """
        if self.size == 1:
            yield
            return

        def ended(*_: object) -> None:
            raise TextEnvError(self._lost("the launcher ended this one"))

        in_main = threading.current_thread() is threading.main_thread()  # where alone handlers can be set
        before = signal.signal(signal.SIGTERM, ended) if in_main else None
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, distributed.DistError) or _NETWORK.search(str(error))):
                raise
            sign = re.sub(r"^\[[^]]*\]\s*", "", str(error))  # without the place in torch's source
            raise TextEnvError(self._lost(re.split(r"\n|\. ", sign)[0])) from error
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)

    def close(self) -> None:
        """Close the connection to the other processes, without waiting for them."""
        global _connected  # noqa: PLW0603 (as many as torch has default process groups)
        if self.size > 1:
            distributed.destroy_process_group()
            _connected = None

    def _shards(self, network: nn.Module) -> bool:
        return self.sharded and hasattr(network, "unshard")

    def _lost(self, sign: str) -> str:
        time.sleep(0.3)  # a connection breaks a moment before its process ends
        here = socket.gethostname()
        gone = [rank for rank, (host, process) in enumerate(self._peers) if host == here and not _runs(process)]
        who = f"rank {', '.join(map(str, gone))} is gone" if gone else "another process is gone or did not answer"
        return (
            f"Process {self.rank} of {self.size} stops, since {who} ({sign}). What it said last stands above or below. "
            "Start the same command again to go on from the last checkpoint."
        )


ALONE = Processes()
"""A run of one process."""

_connected: Processes | None = None


def connect(timeout: float = 600.0) -> Processes:
    """Return the processes of this run, as the environment variables of ``accelerate launch`` or ``torchrun`` say.

    Without them, or where they name one process, nothing is imported or connected.

    Args:
        timeout: Seconds that one process waits for another before it gives up.

    Raises:
        TextEnvError: The launcher asks for what does not work here.
    """
    global _connected  # noqa: PLW0603
    if _connected is not None:
        return _connected
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
            raise TextEnvError(
                "accelerate launch --cpu has started one process, whatever --num_processes says. Leave --cpu out and "
                "give --multi_gpu: accelerate launch --multi_gpu --num_processes 2 -m textenv train ... starts as many "
                "processes, on the CPU where there is no GPU."
            )
        return ALONE
    if not 0 < timeout < float("inf"):
        raise TextEnvError(f"timeout={timeout}: expected a number of seconds above 0.")
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "FSDP_OFFLOAD_PARAMS"):
        if os.environ.get(name, "").lower() == "true":
            raise TextEnvError(f"{name}=true: expected plain data parallelism (DDP) or --use_fsdp without offloading.")
    try:
        from accelerate import Accelerator  # noqa: PLC0415 (an optional dependency, and slow)
        from accelerate.utils import InitProcessGroupKwargs  # noqa: PLC0415
    except ImportError as error:
        raise TextEnvError(
            f"WORLD_SIZE={size}: training on several processes needs accelerate; run: "
            "pip install 'textenv[distributed]'"
        ) from error
    # Accelerate would make an FSDP plugin of its own; it refuses CPUs and wraps layers whose forward is not called.
    sharded = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() == "true"
    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    local, wait = int(os.environ.get("LOCAL_RANK", "0")), timedelta(seconds=timeout)
    if not cpu and local >= torch.cuda.device_count():
        raise TextEnvError(
            f"Process {local} of this machine finds {torch.cuda.device_count()} GPUs; start one process a GPU."
        )
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # the agent's own setting is what counts
            kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if cpu else "nccl", timeout=wait)],
        )
    except (RuntimeError, ValueError) as error:
        raise TextEnvError(
            f"The {size} processes could not be connected: {error}. Start all of them, with one launcher."
        ) from error
    device = torch.device("cpu") if cpu else torch.device("cuda", local)
    index, number = accelerator.process_index, accelerator.num_processes
    processes = Processes(index, number, device, sharded, accelerator, _timeout=wait)
    peers = processes.gather((socket.gethostname(), os.getpid()))
    _connected = dataclasses.replace(processes, _peers=tuple(peers))
    return _connected


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor whole, which every process asks for at once; any other as it is."""
    sharded: Any = tensor
    whole: torch.Tensor = sharded.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def fill(target: torch.Tensor, values: torch.Tensor) -> None:
    """Write whole ``values`` into a tensor that may be sharded; every process does so at once."""
    target.copy_(like(target, values))


def like(target: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return whole ``values`` placed as ``target`` is, device and shards."""
    values = values.to(target.device)
    if not hasattr(target, "device_mesh"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415

    assert isinstance(target, DTensor)
    return distribute_tensor(values, target.device_mesh, target.placements)


class _Evaluate(nn.Module):
    """The training forward as one ``forward``, which is what DDP and FSDP hook into."""

    def __init__(self, policy: TextPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *args: Any, **keywords: Any) -> Evaluation:
        # Copies, since FSDP hooks into what is returned and could lose its hook on a view.
        return Evaluation(*(tensor.clone() for tensor in self.policy.evaluate(*args, **keywords)))


def _runs(process: int) -> bool:
    import psutil  # noqa: PLC0415 (accelerate brings it)

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
