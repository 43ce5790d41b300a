"""Whether a model's output is read as logits or as probabilities."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from tiny import classifier, compiled, inputs, randomize, to_numpy

from keras_reward import KL, BernoulliPolicy, CategoricalPolicy, RewardTuning

NAMES = {"softmax": ("categorical", CategoricalPolicy)}
NAMES["sigmoid"] = ("bernoulli", BernoulliPolicy)


def functions(name):
    """Ways to end a model in a softmax or sigmoid, each a list of layers."""
    function = getattr(ops, name)
    return {
        "activation": [layers.Dense(5, activation=name)],
        "function as activation": [layers.Dense(5, activation=function)],
        "then a cast": [
            layers.Dense(5, activation=name),
            layers.Activation("linear", dtype="float32"),
        ],
        "then dropout": [layers.Dense(5), layers.Activation(name), layers.Dropout(0.5)],
        "then nothing": [layers.Dense(5), layers.Activation(name), layers.Identity()],
    }


class Ends(keras.Model):
    """A subclassed model that ends in a function."""

    def __init__(self, function, positions=None, gate=None, seed=0):
        super().__init__()
        self.function = function
        self.inner = classifier(positions=positions)
        randomize(self.inner, seed)
        self.gate = gate
        self.built = True

    def call(self, x):
        return self.function(self.inner(x))

    def compute_output_shape(self, shape):
        return self.inner.compute_output_shape(shape)


def log_probs_in_numpy(model, x, samples, name):
    """Log-probabilities of samples under probabilities that a model returns."""
    p = to_numpy(model(x)).astype("float64")
    if name == "softmax":
        return np.log(np.take_along_axis(p, samples, -1))
    p = p[:, None]
    return np.log(np.where(samples == 1, p, 1.0 - p)).sum(-1)


def samples_for(name, batch):
    generator = np.random.default_rng(0)
    if name == "softmax":
        return generator.integers(0, 5, (batch, 3))
    return generator.integers(0, 2, (batch, 3, 5))


@pytest.mark.parametrize("way", functions("softmax"))
@pytest.mark.parametrize("name", NAMES)
def test_a_known_activation_is_used(name, way):
    model = keras.Sequential([keras.Input((3,)), *functions(name)[way]])
    randomize(model)
    policy = NAMES[name][1]().bind(model)
    assert policy.from_logits is False
    assert not policy.needs_first_batch
    x, samples = inputs(4), samples_for(name, 4)
    result = to_numpy(policy.log_prob(policy.encode(x), samples))
    expected = log_probs_in_numpy(model, x, samples, name)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_a_linear_layer_is_known_too():
    for policy in (CategoricalPolicy(), BernoulliPolicy()):
        assert policy.bind(classifier()).from_logits is True


def test_probabilities_of_an_unknown_function_are_recognised():
    model = Ends(ops.softmax)
    policy = CategoricalPolicy().bind(model)
    assert policy.needs_first_batch
    x, samples = inputs(4), samples_for("softmax", 4)
    with pytest.warns(UserWarning, match="as probabilities.*from_logits=False"):
        policy.check_first_batch(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once
        result = to_numpy(policy.log_prob(policy.encode(x), samples))
    expected = log_probs_in_numpy(model, x, samples, "softmax")
    np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.parametrize("policy", [CategoricalPolicy, BernoulliPolicy])
def test_a_model_that_owns_a_sigmoid_gate_may_return_logits(policy):
    gate = layers.Dense(5, activation="sigmoid")
    policy = policy().bind(Ends(lambda x: x * 2.0, gate=gate))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        policy.check_first_batch(inputs(8))
    assert policy.from_logits is True


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_probabilities_in_half_precision(dtype):
    """Sums of 200 rounded numbers are further from 1 than 1e-3."""
    logits = np.random.default_rng(0).normal(0, 3, (8, 200)).astype("float32")
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) * 1.004
    policy = CategoricalPolicy().bind(Ends(lambda x: ops.cast(p, dtype)))
    with pytest.warns(UserWarning, match="as probabilities"):
        policy.check_first_batch(inputs(8))
    single = CategoricalPolicy().bind(Ends(lambda x: ops.cast(p, "float32")))
    with pytest.warns(UserWarning, match="as logits, though"):
        single.check_first_batch(inputs(8))


VALUES = {
    "relu": (lambda x: ops.relu(x) * 4.0, True),
    "zeros": (ops.zeros_like, True),
    "log-probabilities": (lambda x: ops.log_softmax(x), True),
    "minus infinity": (lambda x: ops.where(x > 0, x, -float("inf")), True),
    "a corner": (lambda x: ops.one_hot(ops.argmax(x, -1), 5), False),
    "even odds": (lambda x: ops.full_like(x, 0.2), False),
}


@pytest.mark.filterwarnings("ignore:CategoricalPolicy reads")
@pytest.mark.parametrize("case", VALUES)
def test_values_at_the_edge(case):
    function, expected = VALUES[case]
    policy = CategoricalPolicy().bind(Ends(function))
    policy.check_first_batch(inputs(8))
    assert policy.from_logits is expected


def test_a_number_between_0_and_1_must_be_told():
    for function in (ops.sigmoid, ops.zeros_like):
        model = Ends(function)
        policy = BernoulliPolicy().bind(model)
        with pytest.raises(ValueError, match=r"BernoulliPolicy\(from_logits=False\)"):
            policy.check_first_batch(inputs(4))
        assert policy.from_logits == "auto"
    model, samples = Ends(ops.sigmoid), samples_for("sigmoid", 4)
    policy = BernoulliPolicy(from_logits=False).bind(model)
    result = to_numpy(policy.log_prob(policy.encode(inputs(4)), samples))
    expected = log_probs_in_numpy(model, inputs(4), samples, "sigmoid")
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_nan_tells_nothing():
    policy = CategoricalPolicy().bind(Ends(lambda x: x * float("nan")))
    with pytest.raises(ValueError, match=r"NaN in it.*Received: 20 NaN of 20"):
        policy.check_first_batch(inputs(4))


def test_an_explicit_answer_is_obeyed():
    for activation, policies in (
        ("softmax", [CategoricalPolicy(from_logits=True)]),
        ("linear", [CategoricalPolicy(from_logits=False)]),
        ("sigmoid", [CategoricalPolicy(from_logits=True), BernoulliPolicy(None, True)]),
        ("softmax", [BernoulliPolicy(from_logits=False)]),
    ):
        for policy in policies:
            given = policy.from_logits
            assert policy.bind(classifier(activation=activation)).from_logits is given
            policy.encode(inputs(4))
            assert policy.from_logits is given


def test_a_compiled_function_has_no_values():
    policy = CategoricalPolicy().bind(Ends(ops.softmax))
    encode = compiled(policy.encode)
    if keras.config.backend() == "torch":  # nothing is compiled
        with pytest.warns(UserWarning, match="as probabilities"):
            encode(inputs(4))
        return
    with pytest.raises(ValueError, match=r"cannot tell.*check_first_batch\(x\)"):
        encode(inputs(4))
    with pytest.warns(UserWarning, match="as probabilities"):
        policy.check_first_batch(inputs(4))
    encode(inputs(4))


def share(y_true, y_pred):
    return ops.cast(y_pred == 3, "float32")


@pytest.mark.filterwarnings("ignore:CategoricalPolicy reads")
def test_a_reference_model_is_read_like_the_tuned_one():
    """The divergence of a model from one with its own distribution is 0."""
    reference = Ends(ops.softmax)
    tuned = RewardTuning(
        Ends(ops.softmax), reward=share, terms=[KL(reference, 1.0)], seed=0
    )
    tuned.compile(keras.optimizers.SGD(0.0))
    logs = tuned.train_on_batch(inputs(), return_dict=True)
    assert float(logs["kl"]) == pytest.approx(0.0, abs=1e-6)
    # Known from its own layers, unlike that of the tuned model.
    twin = tuned.policy.twin(classifier())
    assert twin.from_logits is True
    assert tuned.policy.from_logits is False


def test_the_config_holds_what_was_found():
    for make in (CategoricalPolicy, BernoulliPolicy):
        assert make().get_config()["from_logits"] == "auto"
        assert make().bind(classifier()).get_config()["from_logits"] is True
    policy = CategoricalPolicy().bind(classifier(activation="softmax"))
    config = keras.saving.serialize_keras_object(policy)
    assert keras.saving.deserialize_keras_object(config).from_logits is False


def channels_first(functional):
    """Five classes at 4 x 6 positions, `(batch, 5, 4, 6)`."""
    conv = layers.Conv2D(5, 1, data_format="channels_first")
    if functional:
        return keras.Sequential([keras.Input((3, 4, 6)), conv])

    class Segmenter(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def call(self, x):
            return self.conv(x)

        def compute_output_shape(self, shape):
            return (shape[0], 5, *shape[2:])

    return Segmenter()


@pytest.mark.parametrize("functional", [True, False])
def test_classes_in_another_axis_are_refused(functional):
    model = channels_first(functional)
    with pytest.raises(ValueError, match=r"classes in axis 1.*Permute\(\(2, 3, 1\)\)"):
        # On a CPU, no backend runs such a convolution but JAX. The model is not called.
        policy = CategoricalPolicy().bind(model)
        policy.read_output(ops.zeros((2, 5, 4, 6)))
    BernoulliPolicy().bind(model).read_output(ops.ones((2, 5, 4, 6)) * 2.0)
    moved = keras.Sequential([model, layers.Permute((2, 3, 1))])
    policy = CategoricalPolicy(from_logits=True).bind(moved)
    context = policy.read_output(ops.zeros((2, 4, 6, 5)))
    assert tuple(policy.mode(context).shape) == (2, 4, 6)


def test_softmax_over_another_axis_is_refused():
    with pytest.raises(ValueError, match="classes in axis 1"):
        CategoricalPolicy().bind(
            keras.Sequential(
                [keras.Input((4, 6, 3)), layers.Conv2D(5, 1), layers.Softmax(axis=1)]
            )
        )
    policy = CategoricalPolicy().bind(
        Ends(lambda x: ops.softmax(x, axis=1), positions=4)
    )
    with pytest.raises(ValueError, match=r"classes in axis 1.*shape \(3, 4, 5\)"):
        policy.check_first_batch(inputs(3))
