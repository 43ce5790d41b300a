"""What a run is, as arrays and what JSON can hold, and back."""

import inspect
import zlib

import keras
import numpy as np
from keras import ops

from keras_reward.backend.keras_private import flatten_layers, metrics_of_steps

# Keras's callbacks that remember, and have no method that says what.
REMEMBER = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.ModelCheckpoint,
)


def variables_of(tuner):
    """All variables of a run, by group: a dict of lists.

    Args:
        tuner: a built and compiled `RewardTuning`.
    """
    # With what draws random numbers: the tuner, the model's dropout.
    weights = [*tuner.variables, *tuner.reward.saved_variables]
    for term in tuner.terms:
        weights += term.run_variables
    metrics = [v for metric in metrics_of_steps(tuner) for v in metric.variables]
    return {
        "weights": list({id(variable): variable for variable in weights}.values()),
        "optimizer": tuner.optimizer.variables,
        "metrics": metrics,
    }


def checksum_of_fixed(tuner):
    """A checksum of what a run reads and does not keep: models of reward and terms."""
    kept = {id(v) for v in variables_of(tuner)["weights"]}
    read = [*tuner.reward.variables]
    for term in tuner.terms:
        read += term.frozen_variables
    checksum = 0
    for variable in read:
        if id(variable) not in kept:
            array = np.ascontiguousarray(ops.convert_to_numpy(variable))
            checksum = zlib.crc32(array.reshape(-1).view("uint8"), checksum)
    return checksum


def check_fixed(saved, own):
    """Raises unless models that are not in the checkpoint are those of the run."""
    if saved != own:
        raise ValueError(
            "A reference model or a reward model is not that of the run in the "
            "checkpoint, which does not keep it. Make it as it was, or keep it: "
            "`KL(..., save=True)`, `ModelReward(..., save_model=True)`. "
            f"Received: checksum {own:08x}, not {saved:08x}"
        )


def described(variables):
    """What must be equal for values to be loaded: path, dtype and shape of each."""
    return [[v.path, str(v.dtype), list(map(int, v.shape))] for v in variables]


def collect(tuner, callbacks):
    """The state of a run.

    Args:
        tuner: a `RewardTuning`.
        callbacks: list of the callbacks of its `fit`.

    Returns:
        A list of NumPy arrays, which training will not change, and a dict for JSON.
    """
    groups = variables_of(tuner)
    # Copies: `convert_to_numpy` may share memory that the next step writes to.
    arrays = [
        np.array(ops.convert_to_numpy(variable))
        for variables in groups.values()
        for variable in variables
    ]
    names = {name: described(variables) for name, variables in groups.items()}
    states = [[name, packed(state(), arrays)] for name, state, _ in stateful(callbacks)]
    about = {"variables": names, "callbacks": states}
    return arrays, {**about, "random": packed(tuner.random_state(), arrays)}


def restore(tuner, callbacks, arrays, about, groups=("weights", "optimizer")):
    """Sets a run to a state.

    Args:
        tuner: a `RewardTuning`, built as it was when the state was collected.
        callbacks: list of the callbacks of its `fit`. Those that the state does not
            know begin anew.
        arrays, about: what `collect` returned.
        groups: names of the groups of variables to set.

    Raises:
        ValueError: if the variables are not those of the state.
    """
    tuner.set_random_state(unpacked(about["random"], arrays))
    start = 0
    for name, variables in variables_of(tuner).items():
        check_variables(name, about["variables"][name], variables)
        if name in groups:
            for variable, value in zip(variables, arrays[start:], strict=False):
                variable.assign(value)
        start += len(variables)
    states = [(name, state) for name, state in about["callbacks"]]
    for name, _, set_state in stateful(callbacks):
        place = next((i for i, (own, _) in enumerate(states) if own == name), None)
        if place is not None:
            set_state(unpacked(states.pop(place)[1], arrays))


def check_variables(group, saved, variables):
    """Raises unless variables have the number, dtypes and shapes of saved ones."""
    own = described(variables)
    if [entry[1:] for entry in saved] == [entry[1:] for entry in own]:
        return
    pairs = zip(saved, own, strict=False)
    differ = [f"{a} in it, {b} here" for a, b in pairs if a[1:] != b[1:]]
    raise ValueError(
        "The checkpoint is of another model, optimizer or setting, so it cannot be "
        "resumed. Build and compile the tuning as it was, or use another folder. "
        f"Received: {len(saved)} variables of group {group!r} in the checkpoint and "
        f"{len(own)} here{'; first difference: ' + differ[0] if differ else ''}"
    )


def check_built(tuner):
    """Raises if layers would get their variables only when the first step runs."""
    if all(layer.built for layer in flatten_layers(tuner.model)):
        return
    raise ValueError(
        "A model must have its weights before a checkpoint can be resumed. Call it "
        f"once on data before `fit`. Received: model {tuner.model.name!r}, not built"
    )


def stateful(callbacks):
    """Callbacks with a state: names, and functions that return and that set it.

    A callback of any class has one if it has `get_state` and `set_state`.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if hasattr(callback, "get_state") and hasattr(callback, "set_state"):
            yield name, callback.get_state, callback.set_state
        elif isinstance(callback, keras.callbacks.History):
            yield name, *attributes(callback, ("history", "epoch"))
        elif isinstance(callback, REMEMBER):
            yield name, *attributes(callback, remembered(callback))


def remembered(callback):
    """Names of what a callback of Keras has besides its arguments."""
    arguments = inspect.signature(type(callback).__init__).parameters
    hidden = [name for name in vars(callback) if name.startswith("_")]
    return [
        name
        for name, value in vars(callback).items()
        if name not in (*arguments, *hidden, "params") and not callable(value)
    ]


def attributes(owner, names):
    """Functions that return and that set some attributes."""

    def get_state():
        return {name: getattr(owner, name) for name in names}

    def set_state(state):
        for name, value in state.items():
            setattr(owner, name, value)

    return get_state, set_state


def packed(value, arrays):
    """A nest for JSON, whose arrays are appended to a list.

    Args:
        value: dicts by strings, lists, tuples, arrays, numbers, strings and None.
        arrays: the list.
    """
    if isinstance(value, dict):
        return {"dict": {name: packed(held, arrays) for name, held in value.items()}}
    if isinstance(value, list | tuple):
        return [packed(held, arrays) for held in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    array = np.array(ops.convert_to_numpy(value) if ops.is_tensor(value) else value)
    if array.dtype.kind in "OUS":
        raise TypeError(
            "The state of a callback must be a nest of dicts, lists, arrays, numbers "
            f"and strings. Received: {value!r} (of type {type(value).__name__})"
        )
    arrays.append(array)
    return {"array": len(arrays) - 1}


def unpacked(value, arrays):
    """The nest that `packed` was given; tuples have become lists."""
    if isinstance(value, list):
        return [unpacked(held, arrays) for held in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]]
        return array if array.ndim else array.item()
    return {name: unpacked(held, arrays) for name, held in value["dict"].items()}
