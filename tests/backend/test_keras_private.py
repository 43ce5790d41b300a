"""What Keras does not promise to keep, one test for each use of it."""

import ast
import inspect
import pathlib

import keras
import numpy as np
import pytest
from backends import trains
from keras import ops
from tiny import classifier, inputs, to_numpy, weights_of

import keras_reward
from keras_reward.backend import keras_private
from keras_reward.backend.keras_private import (
    KeepsWeights,
    ReadsBatches,
    build_compiled_loss,
    build_compiled_metrics,
    flatten_layers,
    has_compiled_metrics,
    print_message,
    producer_of,
    structure_of_inputs,
    variables_of_optimizer,
    without_loss_metrics,
    wrapped_function,
)
from keras_reward.callbacks import HostFailure, RewardProgress

ROOT = pathlib.Path(keras_reward.__file__).parent
PRIVATE = pathlib.Path(keras_private.__file__)


def changed(what):
    """Why a test fails, for a person who has just installed another Keras."""
    first, last = keras_private.SEEN_KERAS
    return (
        f"Keras changed: {what} It was so from {first} to {last}; this is "
        f"{keras.__version__}. See keras_reward/backend/keras_private.py"
    )


def names_in(path):
    """Names with one underscore that a file defines or sets, and those it uses."""
    own, used = {"_fields", "_asdict", "_replace"}, {}  # of named tuples
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Call):
            given = [a.value for a in node.args if isinstance(a, ast.Constant)]
            function = getattr(node.func, "id", getattr(node.func, "attr", None))
            if function in ("getattr", "hasattr"):
                names = given
            elif function == "__setattr__":
                own.update(given)
        for name in filter(is_private, names):
            used.setdefault(name, f"{path.relative_to(ROOT)}:{node.lineno}")
    return own, used


def is_private(name):
    return str(name).startswith("_") and not str(name).startswith("__")


def test_no_other_file_uses_what_is_private():
    files = [path for path in ROOT.rglob("*.py") if path != PRIVATE]
    found = list(map(names_in, files))
    own = set().union(*(own for own, _ in found))
    others = {n: where for _, used in found for n, where in used.items()}
    assert {n: where for n, where in others.items() if n not in own} == {}


def test_no_class_replaces_what_is_private_in_keras():
    def below(cls):
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    bases = (keras.Layer, keras.callbacks.Callback, keras.metrics.Metric)
    ours = [
        cls
        for base in bases
        for cls in below(base)
        if cls.__module__.startswith("keras_reward.")
    ]
    assert keras_reward.RewardTuning in ours
    replaced = {
        f"{cls.__name__}.{name}"
        for cls in ours
        for name in vars(cls)
        if is_private(name)
        for base in cls.__mro__
        if base.__module__.startswith("keras.") and name in vars(base)
    }
    assert replaced == set()


def test_layers_are_found_at_any_depth():
    class Pair(keras.Layer):
        def __init__(self):
            super().__init__()
            self.parts = [keras.layers.Dense(1), keras.layers.Dense(2)]

    pair = Pair()
    model = keras.Sequential([keras.Sequential([pair]), keras.layers.Dropout(0.1)])
    message = changed("`Layer._flatten_layers()` no longer gives all layers.")
    assert hasattr(model, "_flatten_layers"), message
    assert set(flatten_layers(model)) >= {model, pair, *pair.parts}, message
    assert set(flatten_layers(pair)) == {pair, *pair.parts}, message


def test_tensors_know_their_producer():
    message = changed("`_keras_history` of symbolic tensors, or `_inbound_nodes`.")
    dense, x = keras.layers.Dense(3), keras.Input((3,))
    first = dense(x)
    second = dense(first)
    parts = keras.ops.split(second, 3, axis=1)
    for tensor, given in ((first, x), (second, first)):
        assert hasattr(tensor, "_keras_history"), message
        operation, inputs, index = producer_of(tensor)
        assert operation is dense, message
        assert inputs[0] is given, message
        assert (len(inputs), index) == (1, 0), message
    operation, inputs, index = producer_of(parts[2])
    assert inputs[0] is second, message
    assert index == 2, message
    assert producer_of(x)[1:] == ([], 0), message
    assert producer_of(keras.KerasTensor((3,))) == (None, [], 0), message


def test_operations_have_their_names():
    """`keras_reward/policies/activations.py` goes by the names of their classes."""
    x = keras.Input((3,))
    for function, name in (
        (keras.ops.softmax, "Softmax"),
        (keras.ops.log_softmax, "LogSoftmax"),
        (keras.ops.sigmoid, "Sigmoid"),
        (keras.ops.hard_sigmoid, "HardSigmoid"),
        (keras.ops.log_sigmoid, "LogSigmoid"),
        (keras.ops.stop_gradient, "StopGradient"),
        (lambda x: keras.ops.cast(x, "float16"), "Cast"),
        (lambda x: keras.ops.reshape(x, (-1, 1)), "Reshape"),
        (lambda x: keras.ops.expand_dims(x, 1), "ExpandDims"),
        (lambda x: keras.ops.squeeze(x[:, :1], 1), "Squeeze"),
        (keras.ops.transpose, "Transpose"),
        (lambda x: keras.ops.moveaxis(x, 0, 1), "Moveaxis"),
        (lambda x: keras.ops.swapaxes(x, 0, 1), "Swapaxes"),
        (lambda x: x[:, 1:], "GetItem"),
    ):
        operation, _, _ = producer_of(function(x))
        assert type(operation).__name__ == name, changed(f"the operation {name}.")
        assert type(operation).call.__module__.startswith("keras."), changed(name)
    assert producer_of(keras.ops.softmax(x, axis=0))[0].axis == 0, changed("`axis`.")


LAYERS = {
    "dense": (lambda: keras.layers.Dense(3), (None, 4), "kernel"),
    "einsum": (lambda: keras.layers.EinsumDense("ab,bc->ac", 3), (None, 4), "kernel"),
    "conv": (lambda: keras.layers.Conv2D(3, 2), (None, 4, 4, 2), "kernel"),
    "embedding": (lambda: keras.layers.Embedding(5, 3), (None,), "embeddings"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_adapters_have_their_names_and_can_be_off(kind):
    make, shape, name = LAYERS[kind]
    layer = make()
    layer.build(shape)
    message = changed(f"the LoRA attributes of {type(layer).__name__}.")
    assert getattr(layer, "lora_enabled", None) is False, message
    before = np.array(to_numpy(getattr(layer, name)))
    layer.enable_lora(rank=2)
    assert layer.lora_enabled is True, message
    base = [variable for variable in layer.variables if variable.name == name]
    assert len(base) == 1, message
    for side in "ab":
        adapter = getattr(layer, f"lora_{name}_{side}", None)
        assert adapter is not None, message
        adapter.assign(np.ones(adapter.shape))
    assert np.abs(to_numpy(getattr(layer, name)) - before).min() > 1, message
    layer.lora_enabled = False
    np.testing.assert_allclose(to_numpy(getattr(layer, name)), before, err_msg=message)
    np.testing.assert_allclose(to_numpy(base[0]), before, err_msg=message)
    assert not getattr(layer, "quantization_mode", None), message


class Fails(keras.Model):
    """A model whose training step fails while it is traced."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()
        self.built = True

    def call(self, x):
        return self.inner(x)

    def compute_loss(self, *args, **kwargs):
        raise ZeroDivisionError


class FailsAndKeeps(KeepsWeights, Fails):
    pass


def has_weights(model):
    try:
        return all(weight.value is not None for weight in model.weights)
    except TypeError:  # a variable without value and initializer
        return False


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="`fit` takes the weights on JAX alone"
)
def test_a_failed_step_leaves_the_weights_where_they_were():
    message = changed("how `Model.fit` takes the weights of a model on JAX.")
    parameters = inspect.signature(keras.Model._get_jax_state).parameters
    assert "purge_model_variables" in parameters, message
    assert hasattr(keras.Model, "jax_state_sync"), message
    for cls in (Fails, FailsAndKeeps):
        model = cls()
        model.compile(keras.optimizers.SGD(0.1))
        with pytest.raises(ZeroDivisionError):
            model.fit(inputs(), inputs(), verbose=0)
        assert has_weights(model) is (cls is FailsAndKeeps), message
    for one, other in zip(weights_of(model), weights_of(classifier()), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="integers lose bits on JAX alone"
)
@pytest.mark.parametrize("kind", ["arrays", "generator", "dataset"])
def test_targets_are_seen_before_they_lose_bits(kind):
    seen = []

    class Reads(ReadsBatches, keras.Sequential):
        def read_targets(self, y):
            seen.append(y)
            return y * 0.0

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[:8], y[:8]

    x, y = inputs(), np.full((16, 1), 2**40)
    dense = keras.layers.Dense(1, kernel_initializer="zeros")
    model = Reads([keras.Input((3,)), dense])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    steps = {"steps_per_epoch": 2, "shuffle": False} if kind == "generator" else {}
    data = {
        "arrays": (x, y),
        "generator": (((x[:8], y[:8]) for _ in range(4)),),
        "dataset": (Data(),),
    }[kind]
    history = model.fit(*data, batch_size=8, verbose=0, **steps).history
    message = changed("`_symbolic_build` no longer comes before the batches on JAX.")
    assert len(seen) >= 2, message
    assert all(isinstance(y, np.ndarray) and y.min() == 2**40 for y in seen), message
    assert history["loss"] == [0.0], message


@trains
def test_a_step_is_made_anew_where_it_is_taken_away():
    model = classifier()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.make_train_function()
    first = model.train_function
    model.train_function = None
    model.make_train_function()
    message = changed("`Model.train_function` is not what `fit` calls.")
    assert first is not None, message
    assert model.train_function not in (None, first), message


def test_callbacks_say_whether_steps_wait_for_them():
    def waits(*callbacks):
        return not keras.callbacks.CallbackList(list(callbacks))._async_train

    message = changed("`async_safe` of a callback does not tell whether steps wait.")
    assert waits(HostFailure()), message
    assert waits(RewardProgress()) == waits(), message


def test_compiled_metrics_are_found_with_their_outputs():
    message = changed("how `compile` holds metrics until they are built.")
    model = classifier()
    model.compile("sgd", "mse")
    assert not has_compiled_metrics(model), message
    given = {"b": "accuracy", "a": [keras.metrics.MeanIoU(3, name="iou"), "mae"]}
    model.compile("sgd", "mse", metrics=given, weighted_metrics={"b": ["mae"]})
    assert has_compiled_metrics(model), message
    ones = {name: keras.ops.ones((2, 2)) for name in ("a", "b", "c")}
    outputs = {name: ones[name] for name in ("b", "a")}
    asked = []

    def named(identifier):
        asked.append(identifier)
        return "mse" if identifier == "accuracy" else identifier

    found = build_compiled_metrics(model, ones, outputs, named)
    assert {"accuracy", "mae"} < set(map(str, asked)), message
    names = [(metric.name, id(output)) for metric, _, output in found]
    place = {name: id(output) for name, output in outputs.items()}
    expected = {("iou", place["a"]), ("mae", place["a"])}
    expected |= {("mse", place["b"]), ("mae", place["b"])}
    assert set(names) == expected and len(names) == 4, message
    again = build_compiled_metrics(model, ones, outputs, named)
    assert [m for m, *_ in again] == [m for m, *_ in found], message


def test_metrics_of_functions_have_them():
    message = changed("`MeanMetricWrapper._fn`, the function whose mean it is.")
    metrics = keras.metrics
    known = metrics.sparse_categorical_accuracy
    assert wrapped_function(metrics.SparseCategoricalAccuracy()) is known, message
    assert wrapped_function(metrics.MeanMetricWrapper(known)) is known, message
    assert wrapped_function(metrics.AUC()) is None, message
    loss = keras.losses.SparseCategoricalCrossentropy()
    assert loss.fn is keras.losses.sparse_categorical_crossentropy, message


def test_an_optimizer_knows_its_variables():
    message = changed("`Optimizer._trainable_variables`, what it was built for.")
    model = classifier()
    for optimizer in (
        keras.optimizers.Adam(),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    ):
        optimizer.build(model.trainable_variables)
        known = variables_of_optimizer(optimizer)
        assert list(map(id, known)) == list(map(id, model.trainable_variables)), message


def test_functional_models_know_the_structure_of_their_inputs():
    message = changed("`Functional._inputs_struct`, the inputs in their structure.")
    parts = {"b": keras.Input((2,)), "a": (keras.Input((3,)), keras.Input((4,)))}
    merged = keras.layers.Concatenate()(keras.tree.flatten(parts))
    found = structure_of_inputs(keras.Model(parts, merged))
    keras.tree.assert_same_structure(found, parts)
    assert found["a"][1].shape == (None, 4), message
    assert structure_of_inputs(classifier()).shape == (None, 3), message
    assert structure_of_inputs(keras.Sequential()) is None, message


def test_lines_go_where_the_progress_bar_goes(capsys):
    message = changed("`io_utils.print_msg`, which prints or logs.")
    print_message("a line")
    assert "a line" in capsys.readouterr().out, message
    keras.config.disable_interactive_logging()
    try:
        print_message("another line")
    finally:
        keras.config.enable_interactive_logging()
    assert not capsys.readouterr().out, message


def test_compiled_losses_can_be_computed_without_their_metrics():
    message = changed("`Model._compile_loss`, its `build` and its `_metrics`.")
    x = keras.Input((2,))
    outputs = {name: keras.layers.Dense(1, name=name)(x) for name in ("a", "b")}
    model = keras.Model(x, outputs)
    model.compile(loss={"a": "mse", "b": "mae"}, loss_weights={"a": 2.0, "b": 1.0})
    build_compiled_loss(model)
    compiled = model._compile_loss
    assert compiled.built and len(compiled.metrics) == 2, message
    y = {"a": ops.ones((4, 1)), "b": ops.ones((4, 1))}
    y_pred = {"a": ops.full((4, 1), 3.0), "b": ops.full((4, 1), 2.0)}
    with without_loss_metrics(model):
        found = model.compute_loss(None, y, y_pred)
    assert float(found) == 2 * 4 + 1, message
    assert [float(each.count) for each in compiled.metrics] == [0, 0], message
    assert float(model.compute_loss(None, y, y_pred)) == 9
    assert [float(each.count) for each in compiled.metrics] == [4, 4], message
