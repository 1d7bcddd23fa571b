"""Somewhere to run tasks beside this process: what long work asks of a cluster, and Ray as the one there is.

A task is a function of a module and plain arguments, among them where a node finds the model: weights never travel.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import islice
from types import ModuleType
from typing import Any, Protocol, TypeVar

from larql_duck._version import __version__
from larql_duck.errors import LarqlError, reason

Returned = TypeVar("Returned")
Call = tuple[Any, ...]

# How often a task is started again after its worker was lost.
RETRIES = 3
# Tasks that wait for each one that may run: nodes have the next at hand, and few are lost with them.
_AHEAD = 2
# Seconds between two looks for Ctrl-C, and for nodes that came or went.
_LOOK = 0.5
# Seconds in which an address has to answer.
_ANSWERS = 5.0


_current: ContextVar[Cluster | None] = ContextVar("cluster", default=None)


class Cluster(Protocol):
    """Machines that run tasks."""

    def memory(self) -> int:
        """The bytes that the node with most of them offers to tasks."""
        ...

    def run(
        self,
        function: Callable[..., Returned],
        calls: Iterable[Call],
        *,
        memory: int,
        threads: int = 1,
        in_order: bool = False,
    ) -> Generator[tuple[Call, Returned], None, None]:
        """(call, `function` of it) of each call, as each is done, or in the calls' order.

        A task takes so many bytes of memory and threads; one whose worker is lost runs again. Calls are taken as there
        is room for them, and those under way are given up where the generator is closed. LarqlError where no node has the memory, and where a task fails.
        """
        ...


@contextmanager
def cluster_at(address: str | None) -> Iterator[Cluster | None]:
    """The Ray cluster at `address` while the block runs; None where that is None.

    'auto' is the cluster that this machine is a node of, else one that is started on it and ends with the block. A
    connection that this process has already stays, whatever the address. LarqlError where none answers.
    """
    if address is None:
        yield None
        return
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        yield RayCluster(ray)
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def working_on(address: str | None) -> Iterator[None]:
    """A context in which `current_cluster` is the cluster at `address` (see `cluster_at`)."""
    with cluster_at(address) as cluster:
        token = _current.set(cluster)
        try:
            yield
        finally:
            _current.reset(token)


def current_cluster() -> Cluster | None:
    """The cluster that long work is to use, as `working_on` set it; None for this machine alone."""
    return _current.get()


class RayCluster:
    """The Ray cluster that this process is connected to, as a Cluster."""

    def __init__(self, ray: ModuleType) -> None:
        self._ray: Any = ray

    def memory(self) -> int:
        """The bytes that the node with most of them offers to tasks; 0 where none has a processor."""
        return max((int(node.get("memory", 0)) for node in self._nodes()), default=0)

    def run(
        self,
        function: Callable[..., Returned],
        calls: Iterable[Call],
        *,
        memory: int,
        threads: int = 1,
        in_order: bool = False,
    ) -> Generator[tuple[Call, Returned], None, None]:
        """As `Cluster.run` says. A task holds as many processors as threads, or as many as the largest node has."""
        if memory > self.memory():
            raise LarqlError(
                f"a task takes {memory / 1e6:.0f} MB, and no node of the cluster offers more than "
                f"{self.memory() / 1e6:.0f} MB; give less with --memory, or start nodes with more (ray start --memory)"
            )
        processors = min(threads, self._most_processors())
        task = self._ray.remote(_run_task).options(
            num_cpus=processors, memory=memory, max_retries=RETRIES, name=function.__name__
        )
        left = iter(calls)
        waiting: dict[Any, Call] = {}
        try:
            while True:
                for call in islice(left, max(0, self._room(processors) - len(waiting))):
                    waiting[task.remote(__version__, threads, function, *call)] = call
                if not waiting:
                    return
                wanted = list(waiting)[:1] if in_order else list(waiting)
                for reference in self._ray.wait(wanted, timeout=_LOOK)[0]:
                    yield waiting.pop(reference), self._result(reference)
        finally:
            for reference in waiting:
                with suppress(Exception):
                    self._ray.cancel(reference, force=True)

    def _nodes(self) -> list[dict[str, float]]:
        """What each node that runs tasks has: CPU, memory in bytes."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [resources for resources in nodes if resources.get("CPU", 0) >= 1]

    def _most_processors(self) -> int:
        return max((int(node["CPU"]) for node in self._nodes()), default=1)

    def _room(self, processors: int) -> int:
        """How many tasks may be under way: those that run, and as many again that wait."""
        return _AHEAD * max(1, sum(int(node["CPU"]) // processors for node in self._nodes()))

    def _result(self, reference: Any) -> Any:
        try:
            made, error = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as failure:
            why = reason(getattr(failure, "cause", None) or failure)
            raise LarqlError(
                f"a task failed on a node: {why}; ray list tasks names the node, which has the log"
            ) from None
        except self._ray.exceptions.RayError as failure:
            raise LarqlError(
                f"a task was lost, and {RETRIES} more attempts too: {first_words(failure)}; look at the nodes with ray status"
            ) from None
        if error is not None:
            raise LarqlError(f"on a node of the cluster: {error}")
        return made


def first_words(error: BaseException) -> str:
    """What an error of Ray's says, shortened: it goes on with pages of advice."""
    return reason(error)[:120]


def _run_task(
    version: str, threads: int, function: Callable[..., Returned], *call: Any
) -> tuple[Returned | None, str | None]:
    """On a node: what the function makes of the call, or else why it cannot be made."""
    # The last bits of some sums depend on the number of threads.
    import torch

    if version != __version__:
        return (
            None,
            f"it has larql-duck {__version__}, and this machine {version}; install the same on all nodes",
        )
    torch.set_num_threads(threads)
    try:
        return function(*call), None
    except LarqlError as error:
        # As text: not every error of ours can be made again from its message alone.
        return None, str(error)


def _ray() -> ModuleType:
    """The module ray; LarqlError where it is not installed."""
    # Ray would report its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A task that asks for no accelerator must not hide those of the machine from this process.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise LarqlError("--ray needs Ray; install it with: pip install 'larql-duck[ray]'") from None
    # Ray prints on stdout, where results are, that nodes died; no public setting stops it.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _connect(ray: Any, address: str) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        # Ray itself would try for minutes.
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from None
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address != "auto":
            raise _unreachable(address, error) from None
        ray.init(include_dashboard=False, **quiet)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: BaseException) -> LarqlError:
    return LarqlError(
        f"no Ray cluster answers at {address} ({first_words(error)}); start one with: ray start --head, "
        f"or let this machine join it: ray start --address={address}"
    )
