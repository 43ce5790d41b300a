"""Where `fit` begins: at its first batch, or where a checkpoint was written."""

import contextlib
import inspect
import types
import warnings

import keras

from keras_reward.backend.keras_private import Start, print_message
from keras_reward.callbacks.checkpoint import Checkpoint
from keras_reward.tuning.mapped_data import MappedDataset
from keras_reward.tuning.ordered_data import TellsEpoch, own_order


@contextlib.contextmanager
def whole_run(tuner, args, kwargs):
    """A context for Keras's `fit`, in which the order of the data is ours.

    Args:
        tuner: a `RewardTuning`.
        args, kwargs: the arguments of `fit`, with the callbacks of `RewardTuning`.

    Yields:
        The arguments for Keras's `fit`.
    """
    bound = inspect.signature(keras.Model.fit).bind(tuner, *args, **kwargs)
    given = bound.arguments
    checkpoint = take_checkpoint(given)
    resumed = None if checkpoint is None else checkpoint.find()
    key = tuner.data_key(given.get("initial_epoch", 0), resumed and resumed.order)
    data = own_order(given, key)
    start = None
    if resumed is not None:
        check_epoch(given, resumed)
        start = start_of(resumed, data, given, checkpoint.fixed_order)
        given["initial_epoch"] = resumed.epoch
        if resumed.stopped is not None and given.get("epochs", 1) <= resumed.stopped:
            given["initial_epoch"] = max(resumed.epoch, resumed.stopped)
        if given.get("verbose") != 0:
            say_resumed(resumed, given)
    batch = 0 if start is None else start.batch
    if data is not None:
        held_callbacks(given).append(TellsEpoch(data, batch))
        given["x"] = tuner.data_for_fit(data)
    object.__setattr__(tuner, "starts_at", start)
    try:
        with contextlib.ExitStack() as stack:
            if checkpoint is not None:
                others = list(given["callbacks"])
                given["callbacks"].append(checkpoint)
                stack.enter_context(checkpoint.running(others, key, resumed, batch))
            yield bound.args[1:], bound.kwargs
    finally:
        object.__setattr__(tuner, "starts_at", None)


def held_callbacks(given):
    """The callbacks of `fit`: a list, or that within a ready `CallbackList`."""
    callbacks = given["callbacks"]
    return callbacks if isinstance(callbacks, list) else callbacks.callbacks


def take_checkpoint(given):
    """Takes the `Checkpoint` out of the callbacks, and adds the history to them.

    It must be the last one, so that it sees what all others have done.

    Args:
        given: the arguments of `fit` by name.

    Returns:
        The `Checkpoint`, or None.
    """
    callbacks = given["callbacks"]
    is_list = isinstance(callbacks, list)
    held = held_callbacks(given)
    found = [callback for callback in held if isinstance(callback, Checkpoint)]
    if not found:
        return None
    if len(found) > 1 or not is_list:
        raise ValueError(
            "`fit` takes one Checkpoint, in a list of callbacks. "
            f"Received: {len(found)}, in a {type(callbacks).__name__}"
        )
    callbacks.remove(found[0])
    if not any(isinstance(c, keras.callbacks.History) for c in callbacks):
        callbacks.append(keras.callbacks.History())
    return found[0]


def check_epoch(given, resumed):
    """Raises if `fit` is to begin after the checkpoint that it would go on from."""
    if given.get("initial_epoch", 0) > resumed.epoch:
        raise ValueError(
            "`initial_epoch` lies after the newest checkpoint in the folder, which "
            "would be overtaken. Leave it out to go on from the checkpoint, or use "
            f"another folder. Received: initial_epoch={given['initial_epoch']}, "
            f"{resumed.path} of epoch {resumed.epoch}"
        )


def start_of(resumed, data, given, fixed_order):
    """Where the first epoch begins: a `Start`, or None: with all of its batches.

    Args:
        resumed: a `Resumed`.
        data: the `OrderedData`, or None where Keras reads the data.
        given: the arguments of `fit` by name.
        fixed_order: whether those give the same batches again.
    """
    epoch, batch = resumed.epoch, resumed.batch
    if data is not None:
        replay(data.dataset, epoch)
        return Start(batch, passed=batch) if batch else None
    if not fixed_order:
        if batch:
            warnings.warn(
                f"The order of the data is not known, so epoch {epoch + 1} begins anew "
                f"with the weights of the checkpoint, after {batch} of its batches. "
                "Pass arrays or a PyDataset, or `Checkpoint(fixed_order=True)` if the "
                "data give the same batches in each run. "
                f"Received: {type(given.get('x')).__name__}",
                stacklevel=2,
            )
        return None
    skipped, steps = batch, given.get("steps_per_epoch")
    if steps:  # Keras goes on in the same pass over the data
        batches = length(given.get("x"))
        passes = -(-batches // steps) if batches else epoch + 1
        skipped += epoch % passes * steps
    return Start(batch, skipped, skipped) if skipped else None


def replay(dataset, epoch):
    """Ends the epochs of a `PyDataset` that has no other way to know where it is."""
    if isinstance(dataset, MappedDataset):
        dataset = dataset.dataset
    if hasattr(dataset, "set_epoch"):
        return
    for _ in range(epoch):
        dataset.on_epoch_begin()
        dataset.on_epoch_end()


def length(data):
    """The number of batches of an iterable; None if it is unknown or without end."""
    if isinstance(data, types.GeneratorType):
        return None
    try:
        return len(data)
    except TypeError:
        return None


def say_resumed(resumed, given):
    """Says in the log of `fit` where it goes on."""
    place = f"epoch {resumed.epoch + 1}, batch {resumed.batch + 1}"
    if given["initial_epoch"] >= given.get("epochs", 1):
        place = f"all {given.get('epochs', 1)} epochs are done"
    print_message(f"Resumed from {resumed.path}, after {resumed.step} steps: {place}.")
