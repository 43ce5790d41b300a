"""Every reward in the step of a tuner: batches of any size, compiled, saved."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from tiny import compiled, inputs, randomize, to_numpy, weights_of

from keras_reward import (
    BoundaryReward,
    CategoricalPolicy,
    CIDErReward,
    DiceReward,
    GaussianPolicy,
    LengthReward,
    MeanAveragePrecisionReward,
    MeanIoUReward,
    PanopticQualityReward,
    PSNRReward,
    RecallReward,
    RepetitionReward,
    RewardTuning,
    VividnessReward,
)

pytestmark = pytest.mark.slow

BACKEND = keras.config.backend()
IMAGES = 5  # in batches of 2: the last one is smaller, its size unknown on TensorFlow
SAMPLES = 3
COMPILATIONS = [{}, {"jit_compile": True}] if BACKEND == "tensorflow" else [{}]

generator = np.random.default_rng(0)
CORNERS = generator.uniform(0.5, 1.5, (IMAGES, 4, 2))
BOXES = {
    "boxes": np.concatenate([CORNERS, CORNERS + 4], -1).astype("float32"),
    "labels": generator.integers(-1, 2, (IMAGES, 4)),
}
MAPS = generator.integers(0, 3, (IMAGES, 4, 4, 2))
CAPTIONS = generator.integers(1, 6, (IMAGES, 2, 8))
VALUES = generator.normal(size=(IMAGES, 16)).astype("float32")


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def as_boxes(x, samples):
    """16 numbers as 4 boxes of class 0, near those of the ground truth."""
    boxes = ops.reshape(0.8 * samples, (-1, samples.shape[1], 4, 4))
    boxes = boxes + ops.convert_to_tensor([1.0, 1.0, 5.0, 5.0])
    return {"boxes": boxes, "labels": ops.cast(ops.zeros_like(boxes[..., 0]), "int32")}


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def as_label_map(x, samples):
    return ops.reshape(samples, (-1, samples.shape[1], 4, 4))


@keras.saving.register_keras_serializable(package="keras_reward_tests")
def as_panoptic_map(x, samples):
    labels = as_label_map(x, samples)
    return ops.stack([labels, ops.zeros_like(labels)], axis=-1)


def adapted():
    reward = CIDErReward(end_id=1)
    reward.adapt(CAPTIONS)
    return reward


CASES = {
    "recall": (RecallReward, BOXES, as_boxes),
    "map": (
        lambda: MeanAveragePrecisionReward(class_counts=[5, 1]),
        BOXES,
        as_boxes,
    ),
    "panoptic": (lambda: PanopticQualityReward(max_segments=8), MAPS, as_panoptic_map),
    "miou": (lambda: MeanIoUReward(3), MAPS[..., 0], as_label_map),
    "dice": (lambda: DiceReward(3), MAPS[..., 0], as_label_map),
    "boundary": (lambda: BoundaryReward(1, masks=True), MAPS[..., 0], as_label_map),
    "psnr": (PSNRReward, VALUES, None),
    "cider": (adapted, CAPTIONS, None),
    "sum": (
        lambda: adapted() + LengthReward(2, 9, end_id=1) + RepetitionReward(2),
        CAPTIONS,
        None,
    ),
}
REGRESSION = ("recall", "map", "psnr")


def tuner(name, reward, codec, compilation=()):
    numbers = 16 if name in REGRESSION else 16 * 6
    layers = [keras.Input((3,)), keras.layers.Dense(numbers)]
    policy = GaussianPolicy(codec=codec)
    if name not in REGRESSION:
        layers.append(keras.layers.Reshape((16, 6)))
        policy = CategoricalPolicy(codec=codec)
    model = randomize(keras.Sequential(layers))
    tuned = RewardTuning(
        model, reward=reward, policy=policy, num_samples=SAMPLES, seed=0
    )
    tuned.compile(keras.optimizers.SGD(0.1), **dict(compilation))
    return tuned


def train(tuned, y):
    history = tuned.fit(
        inputs(IMAGES), y, batch_size=2, epochs=2, shuffle=False, verbose=0
    )
    return history.history


@pytest.mark.parametrize("compilation", COMPILATIONS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_it_trains_with_batches_of_any_size(name, compilation):
    make, y, codec = CASES[name]
    tuned = tuner(name, make(), codec, compilation)
    before = weights_of(tuned.model)
    history = train(tuned, y)
    assert history["no_reward"] == [0.0, 0.0]
    assert np.isfinite(history["reward"]).all()
    after = weights_of(tuned.model)
    assert all(np.isfinite(weight).all() for weight in after)
    assert not np.array_equal(before[0], after[0])


@pytest.mark.parametrize("name", CASES)
def test_targets_repeated_after_preparing_score_as_targets_repeated_before(name):
    make, y, codec = CASES[name]
    reward = make()
    tuned = tuner(name, reward, codec)
    x = ops.convert_to_tensor(inputs(IMAGES))
    y = keras.tree.map_structure(ops.convert_to_tensor, y)
    context = tuned.policy.encode(x)
    samples = tuned.policy.sample(context, SAMPLES, seed=1)
    outputs = tuned.policy.decode(x, samples)
    rows = keras.tree.map_structure(lambda t: ops.repeat(t, SAMPLES, axis=0), y)

    def both(y, samples, rows, outputs):
        one_by_one = reward.evaluate(reward.prepare(rows), outputs)[0]
        return tuned.reward_samples(context, x, y, samples)[1], one_by_one

    rewards, expected = map(to_numpy, compiled(both)(y, samples, rows, outputs))
    assert rewards.shape == (IMAGES, SAMPLES)
    assert np.ptp(rewards) > 0
    np.testing.assert_allclose(rewards.reshape(-1), expected, rtol=1e-5, atol=1e-6)


def test_a_saved_tuning_keeps_the_document_frequencies(tmp_path):
    make, y, codec = CASES["sum"]
    tuned = tuner("sum", make(), codec)
    train(tuned, y)
    tuned.save(tmp_path / "tuned.keras")
    loaded = keras.saving.load_model(tmp_path / "tuned.keras")
    for one, other in zip(tuned.reward.variables, loaded.reward.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    assert train(tuned, y)["reward"] == train(loaded, y)["reward"]


def test_tables_are_neither_trained_nor_counted_as_the_models():
    tuned = tuner("cider", adapted(), None)
    tables = {id(variable) for variable in tuned.reward.variables}
    assert len(tables) == 5
    assert tables <= {id(v) for v in tuned.non_trainable_variables}
    assert not tables & {id(v) for v in tuned.trainable_variables}
    before = [to_numpy(variable) for variable in tuned.reward.variables]
    train(tuned, CAPTIONS)
    for one, other in zip(before, tuned.reward.variables, strict=True):
        np.testing.assert_array_equal(one, to_numpy(other))


def test_adapting_is_asked_for():
    with pytest.raises(ValueError, match=r"call `reward.adapt\(references\)`"):
        train(tuner("cider", CIDErReward(), None), CAPTIONS)


def test_binary_masks_of_floats_train_as_labels_do():
    masks = (generator.random((IMAGES, 4, 4, 1)) < 0.5).astype("float32")
    runs = []
    for y in (masks, masks[..., 0].astype("int32")):
        model = [keras.Input((3,)), keras.layers.Dense(16)]
        model = randomize(keras.Sequential([*model, keras.layers.Reshape((4, 4, 1))]))
        tuned = RewardTuning(model, DiceReward(1), policy="bernoulli", seed=0)
        tuned.compile(keras.optimizers.SGD(0.1))
        runs.append(train(tuned, y))
    assert runs[0]["reward"] == runs[1]["reward"]
    assert 0.0 < runs[0]["reward"][0] < 1.0
    assert runs[0]["no_reward"] == [0.0, 0.0]


def as_images(x, samples):
    return ops.reshape(samples, (-1, samples.shape[1], 4, 4, 1)) + ops.zeros(3)


@pytest.mark.parametrize(("scale", "share"), [(1.0, 0.0), (255.0, 1.0)])
def test_images_in_0_to_255_count_as_without_reward(scale, share):
    policy = GaussianPolicy(codec=lambda x, s: as_images(x, scale * (s + 5.0) / 10.0))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(16)])
    tuned = RewardTuning(model, VividnessReward(), policy=policy, seed=0)
    tuned.compile("sgd")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = train(tuned, None)
    assert history["no_reward"] == [share, share]
    assert any("NaN or infinite" in str(w.message) for w in caught) is (share == 1.0)
    if share:
        with pytest.raises(ValueError, match=r"in \[0, 1\].*Received: values from"):
            tuned.reward(None, tuned.predict(inputs(2), verbose=0))
