"""Trials on several machines: KerasTuner's environment variables, service and messages, without its traps.

A chief proposes, workers ask it for trials. KerasTuner's own chief waits for ever for a worker that was killed, is
locked by three failures, and loses what went wrong; here a worker that is silent has failed its trial, a search that
cannot go on ends, and errors travel beside the messages. The connection has no encryption and no password: loopback or
a network of your own.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos

from tlkeras.config.recipe import Recipe, fingerprint
from tlkeras.errors import RecipeError, ResourceError, RunError, TlkerasError
from tlkeras.tuning.workers import TrialResult, run_trial

VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
SILENCE = 30.0
"""Seconds after which a worker that says nothing has failed its trial."""
PATIENCE = 600.0
"""Seconds that a chief waits for a worker, and a worker for its chief."""

_BEAT = 2.0
_PAUSE = 0.5
_MOST_WORKERS = 256
_MOST_TEXT = 2000  # of an error; what travels beside a message is limited to 8 KB
_WORKER, _RECIPE, _ANSWER = "tlkeras-worker", "tlkeras-recipe", "tlkeras-answer-bin"


@dataclass(frozen=True)
class Place:
    """What this process is in a search.

    Attributes:
        name: Its KERASTUNER_TUNER_ID; that of the chief holds "chief", as KerasTuner has it.
        address: Of the chief, HOST:PORT.
    """

    name: str
    address: str

    @property
    def is_chief(self) -> bool:
        """Return whether this process proposes."""
        return "chief" in self.name


def read_place() -> Place | None:
    """Return what the environment says that this process is; None where it says nothing.

    Raises:
        TlkerasError: Only some of the variables are set, or the port is none.
    """
    name, host, port = (os.environ.get(variable, "") for variable in VARIABLES)
    if not (name or host or port):
        return None
    problems = [f"{variable} is not set" for variable in VARIABLES if not os.environ.get(variable)]
    if port and not (port.isdecimal() and 0 < int(port) < 65_536):
        problems.append(f"KERASTUNER_ORACLE_PORT is {port!r}, not a port from 1 to 65535")
    if problems:
        raise TlkerasError.from_problems("A search over machines needs all of KerasTuner's variables:", problems)
    return Place(name, f"{host}:{port}")


def identify(recipe: Recipe) -> str:
    """Return what all machines of a search have in common: recipe and version."""
    return f"{fingerprint(recipe)} {version('tlkeras')}"


@dataclass
class _Task:
    trial: str
    values: dict[str, Any]


class Machines:
    """The chief's side: workers are whoever asks, and come and go.

    Args:
        place: Of this process.
        identity: As `identify` returns it; a worker with another one is refused.

    Raises:
        ResourceError: The address cannot be listened on.
    """

    def __init__(self, place: Place, identity: str):
        self.identity = identity
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        self._tasks: dict[str, _Task] = {}
        self._ends: queue.Queue[TrialResult | None] = queue.Queue()
        self._over, self._alone_since = False, time.monotonic()
        self._server = grpc.server(futures.ThreadPoolExecutor(_MOST_WORKERS))
        protos.get_service_grpc().add_OracleServicer_to_server(_Service(self), self._server)
        try:
            self._server.add_insecure_port(place.address)
        except RuntimeError:
            way = "Choose another KERASTUNER_ORACLE_PORT, and an address of this machine."
            raise ResourceError("The chief's address must be free.", place.address, way) from None
        self._server.start()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the workers that were heard of lately."""
        with self._lock:
            return tuple(self._heard)

    def start(self, worker: str, trial: str, values: Mapping[str, Any]) -> None:
        """Have a trial ready for when the worker asks."""
        with self._lock:
            self._tasks[worker] = _Task(trial, dict(values))

    def wait(self) -> TrialResult | None:
        """Return the next trial that ends, or None where a worker came.

        Raises:
            RunError: No worker came for so long.
        """
        while True:
            try:
                return self._ends.get(timeout=_PAUSE)
            except queue.Empty:
                silent = self._find_silent()
            if silent is not None:
                return silent
            if not self.names and time.monotonic() - self._alone_since > PATIENCE:
                way = "Start workers with the same command and another KERASTUNER_TUNER_ID; then start the chief again."
                raise RunError("A chief needs workers.", f"none for {PATIENCE:.0f} s", way)

    def close(self) -> None:
        """Tell the workers that it is over, and wait a little until each has heard it."""
        self._over = True
        end = time.monotonic() + SILENCE
        while self.names and not self._tasks and time.monotonic() < end:
            time.sleep(_PAUSE)
            self._find_silent()
        self._server.stop(grace=1).wait()

    def hear(self, worker: str) -> None:
        """Note that a worker lives."""
        with self._lock:
            new = worker not in self._heard
            if not (new and self._over):  # one that was told to stop may still give a last sign of life
                self._heard[worker] = time.monotonic()
        if new and not self._over:
            self._ends.put(None)

    def give(self, worker: str) -> Trial:
        """Return what a worker is to do: a trial, nothing at the moment, or to stop."""
        with self._lock:
            task = self._tasks.get(worker)
            if task is None and self._over:
                self._heard.pop(worker, None)
        if task is None:
            status = TrialStatus.STOPPED if self._over else TrialStatus.IDLE
            return Trial(keras_tuner.HyperParameters(), status=status)
        space = keras_tuner.HyperParameters()
        space.values = {key: json.dumps(value) for key, value in task.values.items()}
        return Trial(space, trial_id=task.trial, status=TrialStatus.RUNNING)

    def take(self, worker: str, trial: str, result: dict[str, Any]) -> None:
        """Note how a trial ended; what a worker says of one that is not its own any more is not wanted."""
        with self._lock:
            task = self._tasks.get(worker)
            if task is None or task.trial != trial:
                return
            del self._tasks[worker]
        self._ends.put((worker, trial, result))

    def _find_silent(self) -> TrialResult | None:
        """Forget workers that say nothing; return the end of the trial that one of them was at."""
        with self._lock:
            oldest = time.monotonic() - SILENCE
            for worker in [worker for worker, heard in self._heard.items() if heard < oldest]:
                del self._heard[worker]
                self._alone_since = time.monotonic()
                task = self._tasks.pop(worker, None)
                if task is not None:
                    error = f"{worker} was not heard of for {SILENCE:.0f} s: its process or machine died"
                    return worker, task.trial, {"error": error}
        return None


class _Service(protos.get_service_grpc().OracleServicer):  # type: ignore[misc]
    """KerasTuner's service, as far as workers need it."""

    def __init__(self, machines: Machines):
        self._machines = machines

    def GetSpace(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer a sign of life."""
        self._machines.hear(self._greet(context)[_WORKER])
        return protos.get_service().GetSpaceResponse()

    def CreateTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer with what there is to do."""
        self._greet(context)
        self._machines.hear(request.tuner_id)
        return protos.get_service().CreateTrialResponse(trial=self._machines.give(request.tuner_id).to_proto())

    def EndTrial(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Take what a trial reached, or why it failed."""
        beside = self._greet(context)
        self._machines.hear(beside[_WORKER])
        self._machines.take(beside[_WORKER], request.trial.trial_id, json.loads(beside[_ANSWER]))
        return protos.get_service().EndTrialResponse()

    def _greet(self, context: Any) -> dict[str, Any]:
        beside = dict(context.invocation_metadata())
        theirs = beside.get(_RECIPE)
        if theirs != self._machines.identity:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the chief has recipe and version {self._machines.identity}, this worker {theirs}",
            )
        return beside


def serve_chief(place: Place, recipe: Recipe, evaluator: Any) -> dict[str, Any]:
    """Carry out trials that the chief proposes, until it says that the search is over.

    Returns:
        `worker`, its name; `trials` carried out; `failed` among them.

    Raises:
        RecipeError: The chief has another recipe or version.
        RunError: The chief cannot be reached, or has gone.
    """
    chief = _Chief(place, identify(recipe))
    counts = {"trials": 0, "failed": 0}
    with chief.staying_in_touch():
        while True:
            trial = chief.ask()
            if trial.status == TrialStatus.STOPPED:
                return {"worker": place.name, **counts}
            if trial.status != TrialStatus.RUNNING:
                time.sleep(_PAUSE)
                continue
            values = {key: json.loads(text) for key, text in trial.hyperparameters.values.items()}
            result = run_trial(evaluator, recipe, values)
            chief.tell(trial, result)
            counts["trials"] += 1
            counts["failed"] += "error" in result


class _Chief:
    """The chief as a worker sees it."""

    def __init__(self, place: Place, identity: str):
        self._place = place
        self._beside = ((_WORKER, place.name), (_RECIPE, identity))
        self._stub = protos.get_service_grpc().OracleStub(grpc.insecure_channel(place.address))

    def ask(self) -> Trial:
        """Return what is to be done."""
        request = protos.get_service().CreateTrialRequest(tuner_id=self._place.name)
        return Trial.from_proto(self._call(self._stub.CreateTrial, request).trial)

    def tell(self, trial: Trial, result: dict[str, Any]) -> None:
        """Say how a trial ended."""
        short = {key: value[:_MOST_TEXT] if isinstance(value, str) else value for key, value in result.items()}
        request = protos.get_service().EndTrialRequest(trial=trial.to_proto())
        self._call(self._stub.EndTrial, request, ((_ANSWER, json.dumps(short).encode()),))

    @contextmanager
    def staying_in_touch(self) -> Iterator[None]:
        """Give signs of life from a thread, also while a trial runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_BEAT):
                try:
                    self._stub.GetSpace(protos.get_service().GetSpaceRequest(), timeout=_BEAT, metadata=self._beside)
                except grpc.RpcError:
                    continue  # the next call of the worker itself tells

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _call(self, method: Any, request: Any, more: tuple = ()) -> Any:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return method(request, timeout=SILENCE, metadata=(*self._beside, *more))
            except grpc.RpcError as error:
                status: Any = error
                if status.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    rule = "All machines of a search must have the same recipe and version."
                    raise RecipeError(rule, status.details()) from None
                if time.monotonic() > end:
                    received = f"{self._place.address}, silent for {PATIENCE:.0f} s ({status.code().name.lower()})"
                    way = "Start the chief with the same command; what was done is kept, and it goes on."
                    raise RunError("A worker's chief must answer.", received, way) from None
                time.sleep(_PAUSE)
