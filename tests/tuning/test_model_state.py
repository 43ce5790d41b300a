"""A loaded tuning has its model as it was: built, with its adapters, partly frozen."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tiny import classifier, inputs, randomize, to_numpy, weights_of

from keras_reward import KL, CategoricalPolicy, CausalLMPolicy, Reward, RewardTuning
from keras_reward.models import VisionEncoderDecoder, VisionTransformer
from keras_reward.saved_objects import NotRegisteredWarning
from keras_reward.terms.lora_base import adapters_of, lora_layers
from keras_reward.tuning import own_variables

PACKAGE = "keras_reward_tests"


@keras.saving.register_keras_serializable(package=PACKAGE)
class Sum(Reward):
    """The sum of all ids of an output."""

    def call(self, y_true, y_pred):
        rows = ops.reshape(y_pred, (ops.shape(y_pred)[0], -1))
        return ops.sum(ops.cast(rows, "float32"), axis=-1)


def tuner(model, terms=(), **arguments):
    tuned = RewardTuning(model, reward=Sum(), terms=terms, seed=0, **arguments)
    tuned.compile(keras.optimizers.Adam(0.02))
    return tuned


def fit(tuned, x):
    return tuned.fit(x, batch_size=4, shuffle=False, verbose=0).history


def reloaded(tuned, path, **arguments):
    """The tuning from its file, with an error for any warning, as of Keras's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tuned.save(path)
        return keras.models.load_model(path, **arguments)


def check_goes_on(whole, loaded, x):
    """A loaded tuning predicts as the one that was saved, and trains as it does."""
    same = {"rtol": 1e-3, "atol": 1e-4}
    before = [to_numpy(tuned.model.weights[0]) for tuned in (whole, loaded)]
    assert before[0].shape == before[1].shape
    np.testing.assert_array_equal(*(t.predict(x, verbose=0) for t in (whole, loaded)))
    flags = [[v.trainable for v in tuned.model.variables] for tuned in (whole, loaded)]
    assert flags[0] == flags[1]
    histories = [fit(tuned, x) for tuned in (whole, loaded)]
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, **same, err_msg=name)
    for a, b in zip(weights_of(whole.model), weights_of(loaded.model), strict=True):
        np.testing.assert_allclose(a, b, **same)
    return histories[0]


# Adapters.


def captioner():
    """A model that makes its layers itself, some with adapters and most frozen."""
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2}
    encoder = VisionTransformer((8, 8, 3), patch_size=4, **sizes)
    sizes["num_layers"] = 2
    model = VisionEncoderDecoder(encoder, vocabulary_size=6, max_length=3, **sizes)
    randomize(model)
    for part in (model.encoder, *model.blocks, model.token_embedding):
        part.trainable = False
    for layer in (model.blocks[1].mlp.up, model.token_embedding):
        layer.trainable = True
        layer.enable_lora(2, lora_alpha=3)
    model.head.enable_lora(1)
    return model


def photos():
    return np.random.default_rng(1).random((8, 8, 8, 3)).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize("terms", [[], ["lora_base"]])
def test_adapters_of_layers_that_a_model_makes_itself(tmp_path, terms):
    whole = tuner(captioner(), [KL(name, 0.1) for name in terms])
    x = photos()
    fit(whole, x)
    loaded = reloaded(whole, tmp_path / "tuned.keras")
    again = reloaded(loaded, tmp_path / "again.keras")  # before it was trained
    layers = lora_layers(loaded.model)
    assert [(a.lora_rank, a.lora_alpha) for a in layers] == [
        (a.lora_rank, a.lora_alpha) for a in lora_layers(whole.model)
    ]
    assert len(layers) == 3
    weights = [len(t.model.trainable_weights) for t in (whole, loaded, again)]
    assert weights == [weights[0]] * 3
    history = check_goes_on(whole, loaded, x)
    assert fit(again, x)["entropy"] == pytest.approx(history["entropy"], rel=1e-3)


def adapted():
    model = classifier(positions=2)
    model.layers[0].enable_lora(2, lora_alpha=5)
    return model


def test_adapters_go_on_without_a_reference_model(tmp_path):
    """Keras sets them to 0, where their gradient is 0 for ever."""
    whole = tuner(adapted())
    fit(whole, inputs(8))
    check_goes_on(whole, reloaded(whole, tmp_path / "tuned.keras"), inputs(8))


def test_adapters_in_an_earlier_file_are_found():
    """They were those of the term, `term_0_adapter_0`."""
    whole, other = (tuner(adapted(), [KL("lora_base", 0.1)]) for _ in range(2))
    fit(whole, inputs(8))
    store = {}
    own_variables.write(whole, store)
    store = {name: to_numpy(value) for name, value in store.items()}
    adapters = [name for name in store if name.startswith("adapter_")]
    assert len(adapters) == 2
    for name in adapters:
        store[f"term_0_{name}"] = store.pop(name)
    own_variables.read(other, store)
    own_variables.finish_reading(other)
    for one, expected in zip(
        adapters_of(other.model), adapters_of(whole.model), strict=True
    ):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(expected))


def test_adapters_that_a_file_does_not_have_are_new(tmp_path):
    tuned = tuner(classifier(positions=2))
    fit(tuned, inputs(8))
    tuned.save_weights(tmp_path / "tuned.weights.h5")
    other = tuner(adapted())
    layer = other.model.layers[0]
    before = to_numpy(layer.lora_kernel_a)
    other.load_weights(tmp_path / "tuned.weights.h5")
    outputs = [to_numpy(t.model(inputs(8))) for t in (tuned, other)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(to_numpy(layer.lora_kernel_a), before)
    fit(other, inputs(8))
    assert np.abs(to_numpy(layer.lora_kernel_b)).max() > 0


def check_hub_model(folder, name):
    import hub_models

    model = hub_models.MODELS[name]()
    model.backbone.enable_lora(2)
    policy = CausalLMPolicy(end_token_ids=[hub_models.END])
    whole = tuner(model, [KL("lora_base", 0.1)], policy=policy)
    x = hub_models.prompts(name, lengths=(2, 5, 3, 4))
    fit(whole, x)
    whole.save(f"{folder}/tuned.keras")  # KerasHub warns that its `compile` is its own
    check_goes_on(whole, keras.models.load_model(f"{folder}/tuned.keras"), x)


@pytest.mark.hub
@pytest.mark.slow
def test_adapters_of_a_hub_model(hub, tmp_path):
    hub(check_hub_model, tmp_path, "gpt2")


# Weights that a call makes.


@keras.saving.register_keras_serializable(package=PACKAGE)
class OwnPolicy(keras.Model):
    """Its own policy; Keras does not see the call that makes its weights."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.dense = keras.layers.Dense(5)
        self.built = True

    def call(self, x):
        return self.dense(x["images"])

    def encode(self, x, training=False):
        return CategoricalPolicy(from_logits=True).bind(self).encode(x)

    def sample(self, context, num_samples, seed=None, noise=None):
        return CategoricalPolicy().sample(context, num_samples, seed, noise)

    def likelihood(self, context, samples, entropy_gradient=False):
        return CategoricalPolicy().likelihood(context, samples)

    def mode(self, context):
        return CategoricalPolicy().mode(context)

    def decode(self, x, samples):
        return ops.reshape(samples, (-1,))


@pytest.mark.parametrize("lora", [False, True])
def test_weights_that_the_first_call_makes_are_loaded(tmp_path, lora):
    x = {"images": inputs(8)}
    model = OwnPolicy()
    if lora:
        model.encode(x)
        model.dense.enable_lora(2)
    whole = tuner(model, [KL("lora_base")] if lora else [])
    fit(whole, x)
    check_goes_on(whole, reloaded(whole, tmp_path / "tuned.keras"), x)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Grows(OwnPolicy):
    """What it is made of, its class does not say."""

    def grow(self):
        self.more = keras.layers.Dense(2)
        self.more.build((None, 3))


def test_weights_that_cannot_be_made_again_are_not_lost_silently(tmp_path):
    model = Grows()
    model.grow()
    tuned = tuner(model)
    fit(tuned, {"images": inputs(8)})
    with pytest.raises(
        ValueError, match=r"`Grows\.__init__`.*2 weights.*, of 4 in"
    ) as error:
        reloaded(tuned, tmp_path / "tuned.keras")
    assert len(str(error.value)) < 400


# Classes that are not known.


class Plain(keras.Model):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.dense(x)


class Twice(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x


def with_own_layer():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(5), Twice()])


@pytest.mark.parametrize(("make", "cls"), [(Plain, Plain), (with_own_layer, Twice)])
def test_an_unknown_class_is_named_when_saving_and_when_loading(tmp_path, make, cls):
    tuned = tuner(make())
    x = inputs(8)
    fit(tuned, x)
    name = cls.__name__
    line = rf"'{name}' is not registered.*`custom_objects={{'{name}': {name}}}`"
    with pytest.warns(NotRegisteredWarning, match=line):
        tuned.save(tmp_path / "tuned.keras")
    with pytest.raises(ValueError, match=f"class '{name}' must be registered") as error:
        keras.models.load_model(tmp_path / "tuned.keras")
    assert len(str(error.value)) < 400
    path, custom = tmp_path / "tuned.keras", {name: cls}
    loaded = keras.models.load_model(path, custom_objects=custom)
    check_goes_on(tuned, loaded, x)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Forgetful(Plain):
    def __init__(self, units):
        super().__init__()

    def get_config(self):
        return {}


def test_a_class_that_does_not_make_itself_again_is_named(tmp_path):
    tuned = tuner(Forgetful(5))
    fit(tuned, inputs(8))
    with pytest.raises(ValueError, match=r"'Forgetful'.*its own `get_config`") as error:
        reloaded(tuned, tmp_path / "tuned.keras")
    assert len(str(error.value)) < 500
