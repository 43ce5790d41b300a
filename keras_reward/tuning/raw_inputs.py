"""Raw inputs of a KerasHub task are preprocessed, as by the task's own `fit`."""

import functools
import inspect

import keras

from keras_reward.nests import string_lists, to_arrays, to_numpy
from keras_reward.policies import keras_hub_inputs
from keras_reward.tuning.mapped_data import are_rows, mapped
from keras_reward.tuning.ordered_data import ArrayBatches, split_off


class RawInputs:
    """Mixin for `RewardTuning`: applies the preprocessor of a KerasHub task.

    `fit`, `evaluate`, `predict` and the methods for single batches take the inputs that
    those of the task take. All that follows gets them preprocessed: the model, the
    codec, and the reward. For other models nothing changes.
    """

    def preprocessed(self, x, y=None, sample_weight=None):
        """A batch as the model and the reward take it.

        Args:
            x: inputs; raw, if the model is a KerasHub task with a preprocessor.
            y: targets, or None.
            sample_weight: weights, or None.

        Returns:
            `(x, y, sample_weight)`, in NumPy if they were preprocessed.
        """
        keras_hub_inputs.check_strings(self.model, y)
        if not keras_hub_inputs.is_raw(self.model, x):
            return x, y, sample_weight
        x, y, sample_weight = to_arrays((x, y, sample_weight))
        keras_hub_inputs.check_range(self.model, x)
        batch = string_lists(x), y, sample_weight
        return to_numpy(keras_hub_inputs.preprocess(self.model, *batch))

    def __call__(self, x, *args, **kwargs):
        keras_hub_inputs.check_call(self.model, x)
        return super().__call__(x, *args, **kwargs)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        if keras_hub_inputs.is_task(self.model):
            bound = bind(keras.Model.fit, self, args, kwargs)
            preprocess_fit(self, bound.arguments)
            args, kwargs = bound.args[1:], bound.kwargs
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        # Within `fit`, the validation data are preprocessed already.
        cached = kwargs.get("_use_cached_eval_dataset", False)
        if keras_hub_inputs.is_task(self.model) and not cached:
            bound = bind(keras.Model.evaluate, self, args, kwargs)
            preprocess_data(self, bound.arguments, self.check_x)
            args, kwargs = bound.args[1:], bound.kwargs
        return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        if keras_hub_inputs.is_task(self.model):
            bound = bind(keras.Model.predict, self, args, kwargs)
            preprocess_data(self, bound.arguments, self.check_x)
            args, kwargs = bound.args[1:], bound.kwargs
        return super().predict(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        batch = self.preprocessed(x, y, sample_weight)
        return super().train_on_batch(*batch, *args, **kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        batch = self.preprocessed(x, y, sample_weight)
        return super().test_on_batch(*batch, *args, **kwargs)

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, x):
        return self.predict_preprocessed(self.preprocessed(x)[0])

    def predict_preprocessed(self, x):
        """As `predict_on_batch`, of inputs as `preprocessed` returns them."""
        return super().predict_on_batch(x)


def bind(method, tuner, args, kwargs):
    """The arguments of a method of Keras, by name."""
    return inspect.signature(method).bind(tuner, *args, **kwargs)


def preprocess_fit(tuner, given):
    """Preprocesses the data, and the validation data, among the arguments of `fit`.

    Args:
        tuner: a `RewardTuning` of a KerasHub task.
        given: the arguments by name, changed in place.
    """
    validation = given.get("validation_data")
    share = given.get("validation_split")
    if share and validation is None and are_rows(given.get("x")):
        names = ("x", "y", "sample_weight")
        arrays = to_arrays(tuple(map(given.get, names)))
        first, validation = split_off(arrays, share)
        given.update(zip(names, first, strict=True))
        given["validation_split"] = 0.0
    if validation is not None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(validation)
        size = given.get("validation_batch_size") or given.get("batch_size")
        steps = given.get("validation_steps")
        held = {"x": x, "y": y, "sample_weight": sample_weight}
        held |= {"batch_size": size, "steps": steps}
        preprocess_data(tuner, held, tuner.check_x)
        held = (held["x"], held["y"], held["sample_weight"])
        given["validation_data"] = keras.utils.pack_x_y_sample_weight(*held)
    preprocess_data(tuner, given, tuner.check_x_and_y)


def preprocess_data(tuner, given, check):
    """Preprocesses `x`, `y` and `sample_weight` among the arguments of a method.

    Args:
        tuner: a `RewardTuning` of a KerasHub task.
        given: the arguments by name, changed in place.
        check: called with `x` and `y` of each batch that is preprocessed on the host.
    """
    task = tuner.model
    x, y, weight = (given.get(name) for name in ("x", "y", "sample_weight"))
    function = BatchFunction(tuner, check)
    if are_rows(x):
        keras_hub_inputs.check_strings(task, y)
        if not keras_hub_inputs.is_raw(task, x):
            return
        steps = given.get("steps") or given.get("steps_per_epoch")
        arrays = to_arrays((x, y, weight))
        x = ArrayBatches(arrays, function, given.get("batch_size"), steps)
        given.update({"x": x, **{name: None for name in ("y", "sample_weight")}})
    elif task.preprocessor is not None:
        data = mapped(x, function, function.in_graph)
        if data is not None:
            given["x"] = data
        # Of text, what Keras takes from elsewhere are token ids.
        elif not keras_hub_inputs.takes_strings(task):
            raise ValueError(
                f"Task {task.name!r} has a preprocessor, which RewardTuning applies to "
                "arrays, a PyDataset, a generator, a tf.data.Dataset and a dataset of "
                "Grain. For other data apply it where they are loaded, and set "
                f"`task.preprocessor = None`. Received: {type(x).__name__}"
            )


class BatchFunction:
    """Preprocesses a batch of a dataset.

    Args:
        tuner: a `RewardTuning` of a KerasHub task.
        check: called with `x` and `y` of the result.
    """

    def __init__(self, tuner, check):
        self.tuner = tuner
        self.check = check

    def __call__(self, batch):
        x, y, sample_weight = self.tuner.preprocessed(*unpacked(batch))
        self.check(x, y)
        batch = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return batch if isinstance(batch, tuple) else (batch,)

    def in_graph(self, *batch):
        """The same for the symbolic tensors of a `tf.data.Dataset`."""
        task = self.tuner.model
        x, y, sample_weight = unpacked(batch[0] if len(batch) == 1 else batch)
        keras_hub_inputs.check_strings(task, y)
        if keras_hub_inputs.is_raw(task, x):
            x, y, sample_weight = keras_hub_inputs.preprocess(task, x, y, sample_weight)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


def unpacked(batch):
    """`(x, y, sample_weight)` of a batch, which may be a list of strings alone."""
    if isinstance(batch, list) and isinstance(batch[0], str):
        return batch, None, None
    return keras.utils.unpack_x_y_sample_weight(batch)
