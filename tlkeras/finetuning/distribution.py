"""Steps on several devices at once: each takes a share of the batch, and the sum is that of one device.

What holds on one device must hold here: the loss and the gradient are those of the whole batch, clipping and loss
scaling act on that gradient, and every device's weights stay equal. Keras would clip each device's gradient before it
adds them up, and its `fit` fails on several machines (keras#20585); the steps here do neither.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.errors import RunError, TlkerasError
from tlkeras.finetuning.checkpoints import Checkpoint
from tlkeras.finetuning.network import Network

_TIMEOUT_SECONDS = 1800.0  # of a process that waits for the others: one may measure or save meanwhile
_LOST_NAMES = ("Unavailable", "Internal", "Aborted", "Cancelled", "DeadlineExceeded")
_LOST = tuple(getattr(tf.errors, f"{name}Error") for name in _LOST_NAMES)


class Strategy:
    """A single device: the interface of the strategies, and no work to do."""

    workers = 1  # processes that train together
    worker = 0  # index of this process; the first one, the chief, alone writes
    devices = 1  # of this process

    @property
    def is_chief(self) -> bool:
        """Whether this process writes checkpoints and results."""
        return self.worker == 0

    def scope(self) -> AbstractContextManager[Any]:
        """Within, variables are made on all devices."""
        return nullcontext()

    def replicate(self, network: Network) -> Network:
        return network

    def gather(self, replicated: Network, network: Network) -> None:
        """Copy the trained values back into the network that was replicated."""

    def wrap_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Let an optimizer that was made within the scope take gradients that are summed already."""

    def synchronise(self, layers: Sequence[keras.Layer]) -> None:
        """Let batch norm take its statistics of the batch over all devices."""

    def share(self, positions: np.ndarray) -> np.ndarray:
        """This process's part of a batch."""
        return positions

    def run(self, learn: Callable[..., tf.Tensor], *batch: Any) -> tf.Tensor:
        """The sum over the devices of `learn(share of the batch, *part of the batch)`."""
        return learn(1.0, *batch)

    def sum(self, gradients: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """Within `learn`: the sums over all devices."""
        return gradients

    def map(self, function: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor) -> tf.Tensor:
        """Outputs [b, ...] for inputs [b, ...], computed on all devices of this process."""
        return function(inputs)

    def call(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """The result of a function for whole inputs, with the variables of one device."""
        return function(*inputs)

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array, int32 or float32, over all processes."""
        return array

    def broadcast(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The chief's arrays, bit for bit; every process gives as many, of the same shapes and dtypes.

        Results that each process computes for itself may differ in the last bits.
        """
        return list(arrays)

    def broadcast_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint that the chief has loaded; the others need not see its disk."""
        return checkpoint

    def monitor_peers(self) -> AbstractContextManager[None]:
        """Within, TensorFlow's errors about the loss of another process are a RunError."""
        return nullcontext()


ONE_DEVICE = Strategy()


class MultiDeviceStrategy(Strategy):
    """The devices of a strategy of `tf.distribute`: mirrored, or multi-worker mirrored with one process per worker."""

    def __init__(self, strategy: tf.distribute.Strategy, workers: int = 1, worker: int = 0):
        self._strategy, self.workers, self.worker = strategy, workers, worker
        self.devices = strategy.num_replicas_in_sync // workers
        self._reduce_everywhere = tf.function(
            lambda values: strategy.run(self._reduce_once, (values,)), jit_compile=False, reduce_retracing=True
        )

    def scope(self) -> AbstractContextManager[Any]:
        return self._strategy.scope()

    def replicate(self, network: Network) -> Network:
        """A copy with mirrored variables, all equal to those of the chief's network."""
        with self.scope():
            replicated = _clone_network(network)
        values = self.broadcast([source.numpy() for source in network.model.weights])
        for target, value in zip(replicated.model.weights, values, strict=True):
            target.assign(value)
        return replicated

    def gather(self, replicated: Network, network: Network) -> None:
        for target, source in zip(network.model.weights, replicated.model.weights, strict=True):
            target.assign(source.numpy())

    def wrap_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Take the sum over devices out of the optimizer: `sum` has added the gradients up before clipping."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not hasattr(inner, "_all_reduce_sum_gradients"):
            raise TlkerasError(
                "Training on several devices needs Keras as of 3.15.",
                f"{keras.__version__}, whose optimizers add up gradients in another way",
                "Set training.strategy to none.",
            )
        vars(inner)["_all_reduce_sum_gradients"] = list

    def synchronise(self, layers: Sequence[keras.Layer]) -> None:
        for layer in layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True

    def share(self, positions: np.ndarray) -> np.ndarray:
        return np.array_split(positions, self.workers)[self.worker]

    def run(self, learn: Callable[..., tf.Tensor], *batch: Any) -> tf.Tensor:
        """Call `learn` on each device with its slice and that slice's share of the examples of all devices."""

        def learn_part(*whole: Any) -> tf.Tensor:
            part = [self._slice(tensor) for tensor in whole]
            count = tf.cast(tf.shape(part[0])[0], tf.float32)
            return learn(count / self._reduce(count), *part)

        return self._strategy.reduce("SUM", self._strategy.run(learn_part, batch), axis=None)

    def sum(self, gradients: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        present = [gradient for gradient in gradients if gradient is not None]
        added = iter(self._reduce(present))
        return [None if gradient is None else next(added) for gradient in gradients]

    def map(self, function: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor) -> tf.Tensor:
        predictions = self._strategy.run(lambda whole: function(self._slice(whole)), (inputs,))
        return tf.concat(self._strategy.experimental_local_results(predictions), axis=0)

    def call(self, function: Callable[..., Any], *inputs: Any) -> Any:
        predictions = self._strategy.run(function, inputs)
        return tf.nest.map_structure(lambda value: self._strategy.experimental_local_results(value)[0], predictions)

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        if self.workers == 1:
            return array
        sums = self._reduce_everywhere(tf.constant(array))
        return self._strategy.experimental_local_results(sums)[0].numpy()

    def broadcast(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self.workers == 1:
            return list(arrays)
        content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        words = np.frombuffer(content + bytes(-len(content) % 4), np.int32)
        sent = self.all_reduce(words if self.is_chief else np.zeros_like(words)).tobytes()
        ends = np.cumsum([array.nbytes for array in arrays]).tolist()
        return [
            np.frombuffer(sent[end - array.nbytes : end], array.dtype).reshape(array.shape)
            for array, end in zip(arrays, ends, strict=True)
        ]

    def broadcast_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        if self.workers == 1:
            return checkpoint
        header, arrays = b"", list[np.ndarray]()
        if checkpoint is not None and self.is_chief:
            arrays = list(checkpoint.arrays.values())
            layout = [(name, array.dtype.name, array.shape) for name, array in checkpoint.arrays.items()]
            header = json.dumps([checkpoint.step, checkpoint.state, layout]).encode()
        size = int(self.all_reduce(np.array([len(header)], np.int32))[0])
        if not size:
            return None
        (sent,) = self.broadcast([np.frombuffer(header or bytes(size), np.uint8)])
        step, state, layout = json.loads(sent.tobytes())
        arrays = self.broadcast(arrays or [np.zeros(shape, dtype) for _, dtype, shape in layout])
        return Checkpoint(step, {name: array for (name, *_), array in zip(layout, arrays, strict=True)}, state)

    @contextmanager
    def monitor_peers(self) -> Iterator[None]:
        try:
            yield
        except _LOST as error:
            if self.workers == 1:
                raise
            raise RunError(
                "Another process of this training is gone.",
                f"{type(error).__name__} at worker {self.worker} of {self.workers}",
                "Start all of them again with --resume and the name of the run.",
            ) from error

    def _slice(self, tensor: Any) -> Any:
        """This device's rows of a tensor; they are cut out before they are copied to the device."""
        if tensor is None or self.devices == 1:
            return tensor
        number = tf.distribute.get_replica_context().replica_id_in_sync_group % self.devices
        with tf.device("/cpu:0"):
            count = tf.shape(tensor)[0]
            return tensor[number * count // self.devices : (number + 1) * count // self.devices]

    def _reduce(self, tensors: Any) -> Any:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    def _reduce_once(self, values: tf.Tensor) -> tf.Tensor:
        here = tf.identity(values)  # on the device: an argument is nowhere yet
        first = tf.distribute.get_replica_context().replica_id_in_sync_group % self.devices == 0
        return self._reduce(here if self.devices == 1 else tf.where(first, here, tf.zeros_like(here)))


def _clone_network(network: Network) -> Network:
    """A network with variables of its own and the names of the other; values are not copied."""
    both = keras.Model(network.backbone.input, [network.backbone.output, network.features])
    copied = keras.models.clone_model(both)
    backbone, pooled = (keras.Model(copied.input, output, name=network.backbone.name) for output in copied.outputs)
    heads = {task: list(map(_copy_layer, layers)) for task, layers in network.heads.items()}
    source_head = None
    if network.source_head is not None:
        source_head = keras.models.clone_model(network.source_head)
        source_head.set_weights(network.source_head.get_weights())
    weighting = network.weighting and _copy_layer(network.weighting)
    return Network(backbone, pooled, heads, network.model.name, source_head, weighting)


def _copy_layer(layer: keras.Layer) -> keras.Layer:
    return type(layer).from_config(layer.get_config())


def make_multi_worker(workers: int, worker: int) -> Strategy:
    """The devices of all processes of TF_CONFIG; nothing may have been computed before in this process."""
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=_TIMEOUT_SECONDS)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return MultiDeviceStrategy(strategy, workers, worker)


def make_mirrored() -> Strategy:
    """All GPUs of this machine, else all its logical CPUs; `ONE_DEVICE` where there is one."""
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(found) < 2:
        return ONE_DEVICE
    return MultiDeviceStrategy(tf.distribute.MirroredStrategy([device.name for device in found]))
