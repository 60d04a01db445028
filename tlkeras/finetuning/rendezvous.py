"""The processes that train together: read from TF_CONFIG, and a barrier at which recipe and versions are compared.

The barrier comes before TensorFlow's own, which would neither name the missing workers nor compare anything.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tlkeras.errors import RunError, TlkerasError
from tlkeras.progress import progress_bar

TIMEOUT_SECONDS = 600.0  # schedulers do not start all machines at once
_MAX_MESSAGE_BYTES = 1 << 20
_EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    """Processes that train together."""

    addresses: tuple[str, ...]  # "host:port" of each; the first one is the chief
    index: int  # of this process

    def __len__(self) -> int:
        return len(self.addresses)


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster of TF_CONFIG, as schedulers set it; a TlkerasError names everything that is missing or invalid."""
    text = environment.get("TF_CONFIG", "")
    if not text:
        rule = "training.strategy multi_worker needs TF_CONFIG in the environment of every process."
        raise TlkerasError(rule, way_out=f"An example, of the first of two: TF_CONFIG='{_EXAMPLE}'")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise TlkerasError("TF_CONFIG is not JSON with workers and a task.", problem, f"As in {_EXAMPLE}") from None
    if problems := _list_problems(config, workers, task):
        raise TlkerasError.from_problems("TF_CONFIG is invalid:", problems)
    return Cluster(tuple(workers), task["index"])


def _list_problems(config: Any, workers: Any, task: Any) -> list[str]:
    if not isinstance(workers, list) or not workers or not all(isinstance(worker, str) for worker in workers):
        return ["cluster.worker is no list of addresses."]
    problems = [f"{address!r} is no host:port." for address in workers if not _is_address(address)]
    problems += [f"{address!r} is listed twice." for address in sorted(set(workers)) if workers.count(address) > 1]
    if others := sorted(set(config["cluster"]) - {"worker"}):
        problems.append(f"only workers are supported, the first is the chief. Received: {', '.join(others)}.")
    kind, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    if kind != "worker":
        problems.append(f"task.type is not 'worker'. Received: {kind!r}.")
    if type(index) is not int or not 0 <= index < len(workers):
        problems.append(f"task.index is no whole number from 0 to {len(workers) - 1}. Received: {index!r}.")
    return problems


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 2**16


def rendezvous(cluster: Cluster, facts: Mapping[str, Any], timeout: float = TIMEOUT_SECONDS) -> None:
    """Wait seconds until all processes have connected, and compare their facts: versions, the recipe.

    The others call the chief at its own address, which TensorFlow only binds afterwards.
    RunError if some did not connect in time, or some differ; each is named with the differences.
    """
    if len(cluster) > 1:
        meet = _call if cluster.index else _gather
        meet(cluster, facts, time.monotonic() + timeout)


def _gather(cluster: Cluster, facts: Mapping[str, Any], end: float) -> None:
    host, _, port = cluster.addresses[0].rpartition(":")
    connected: dict[int, tuple[socket.socket, list[str]]] = {}
    with contextlib.ExitStack() as stack, progress_bar("Waiting for workers", len(cluster) - 1, "workers") as advance:
        try:
            server = stack.enter_context(socket.create_server(("", int(port)), reuse_port=False))
        except OSError as error:
            raise RunError("The chief's port is not free.", f"{host}:{port} ({error.strerror})") from None
        while len(connected) < len(cluster) - 1:
            server.settimeout(max(0.001, end - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
                peer.settimeout(10)
                hello = _receive(peer)
                index, theirs = hello["index"], hello["facts"]
            except TimeoutError:
                break
            except (OSError, ValueError, KeyError, TypeError):  # other programs call ports, too
                continue
            if index not in connected:
                advance(1)
            connected[index] = (peer, _compare(index, theirs, facts))
        missing = [cluster.addresses[i] for i in range(1, len(cluster)) if i not in connected]
        problems = [problem for _, found in connected.values() for problem in found]
        problems += [f"{address} did not connect" for address in missing]
        for peer, _ in connected.values():
            with contextlib.suppress(OSError):
                _send(peer, {"problems": problems})
    _raise(problems)


def _call(cluster: Cluster, facts: Mapping[str, Any], end: float) -> None:
    host, _, port = cluster.addresses[0].rpartition(":")
    problem: object = "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 10)) as chief:
                _send(chief, {"index": cluster.index, "facts": dict(facts)})
                chief.settimeout(max(0.001, end - time.monotonic()) + 10)  # the chief waits for the others
                _raise(_receive(chief)["problems"])
                return
        except (OSError, ValueError, KeyError) as error:
            problem = error
            time.sleep(min(0.2, max(0.0, left)))
    raise RunError(
        "This worker cannot reach the chief.",
        f"{cluster.addresses[0]} ({problem})",
        "Check that it runs, that TF_CONFIG is the same on all machines, and that no firewall is between.",
    )


def _compare(index: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    ours = json.loads(json.dumps(ours))
    names = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    return [f"worker {index}: {name} is {theirs.get(name)!r}, of the chief it is {ours.get(name)!r}" for name in names]


def _raise(problems: list[str]) -> None:
    if problems:
        raise RunError.from_problems("The workers cannot train together:", problems)


def _send(peer: socket.socket, message: Mapping[str, Any]) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _receive(peer: socket.socket) -> Any:
    with peer.makefile("rb") as lines:
        line = lines.readline(_MAX_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise ValueError("the connection ended")
    return json.loads(line)
