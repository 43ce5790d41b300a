"""Batches whose shapes differ: images of any size, more or fewer boxes and captions.

TensorFlow traces one step for all of them, the other backends one for each shape.
"""

import keras
import numpy as np
import pytest
from every_part import captioner
from keras import ops
from tiny import classifier, inputs, randomize, weights_of

import keras_reward as kr


def each(shapes, of_shape):
    """A generator that is not empty after Keras has peeked."""

    def batches():
        for number, shape in enumerate(shapes):
            yield of_shape(np.random.default_rng(number), shape)

    return batches()


def images_and_labels(generator, size):
    images = generator.random((2, *size, 3)).astype("float32")
    return images, (images[..., 0] * 3).astype("int32")


def mean_mask(y_true, y_pred):
    return ops.mean(ops.cast(y_pred, "float32"), axis=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "reward", "channels", "terms"),
    [
        ("categorical", kr.MeanIoUReward(3), 3, ("mle", "kl")),
        ("bernoulli", mean_mask, 1, ()),
        ("gaussian", "colorfulness", 3, ("kl",)),
    ],
)
def test_a_network_learns_from_images_of_any_size(policy, reward, channels, terms):
    """As it does batch by batch, where every size is known."""
    sizes = [(4, 6), (5, 3), (4, 4)]
    # A function of TensorFlow that saw two shapes takes all.
    eagerly = keras.config.backend() == "tensorflow"

    def make(eagerly=False):
        # Images of a normal distribution stay near [0, 1].
        activation = "sigmoid" if policy == "gaussian" else None
        last = keras.layers.Conv2D(channels, 1, activation=activation)
        layers = [keras.Input((None, None, 3)), last]
        model = randomize(keras.Sequential(layers))
        made = {"mle": kr.MaximumLikelihood(0.1), "kl": kr.KL("copy", 0.1)}
        tuned = kr.RewardTuning(
            model, reward, policy, terms=[made[term] for term in terms], seed=0
        )
        tuned.compile(keras.optimizers.SGD(0.1), run_eagerly=eagerly)
        return tuned

    tuned, one_by_one = make(), make(eagerly)
    history = tuned.fit(each(sizes, images_and_labels), verbose=0).history
    trained = [
        one_by_one.train_on_batch(*batch, return_dict=True)["reward"]
        for batch in each(sizes, images_and_labels)
    ]
    logs = tuned.evaluate(each(sizes, images_and_labels), verbose=0, return_dict=True)
    tested = [
        one_by_one.test_on_batch(*batch, return_dict=True)["reward"]
        for batch in each(sizes, images_and_labels)
    ]
    found = [*weights_of(tuned.model), history["reward"][0], logs["reward"]]
    expected = [*weights_of(one_by_one.model), np.mean(trained), np.mean(tested)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)


def one_box(x, samples):
    """The box [0, 0, 4, 4] of the class that was drawn."""
    boxes = ops.zeros((*ops.shape(samples), 1, 4), "float32")
    corners = np.array([0, 0, 4, 4], "float32")
    return {"boxes": boxes + corners, "labels": samples[..., None]}


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize("counts", [(2, 1), (1, 0), (0, 0)])
def test_images_have_any_number_of_boxes_or_none(counts, method):
    """The model is certain of class 1. Each image has one such box, or no box."""

    def batch(generator, count):
        boxes = np.zeros((4, count, 4), "float32")
        boxes[:, :, 2:] = 4.0
        labels = np.full((4, count), -1)
        labels[:, :1] = 1
        masks = np.zeros((4, count, 2, 2), "float32")
        return inputs(4), {"boxes": boxes, "labels": labels, "masks": masks}

    model = classifier()
    model.set_weights([np.zeros((3, 5)), 99.0 * np.eye(5)[1]])
    policy = kr.CategoricalPolicy(codec=one_box)
    tuned = kr.RewardTuning(model, reward=kr.RecallReward(), policy=policy, seed=0)
    tuned.compile("sgd")
    data = each(counts, batch)
    if method == "fit":
        found = tuned.fit(data, verbose=0).history["reward"][0]
    else:
        found = tuned.evaluate(data, verbose=0, return_dict=True)["reward"]
    assert found == np.mean([count > 0 for count in counts])


@pytest.mark.slow
def test_images_have_any_number_of_references_of_any_length():
    """All tokens are equally likely: log(5) each. The last batch has no reference."""
    batches = [
        [[[2, 3, 1, 0], [4, 1, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]]],
        [[[3, 1]], [[2, 2]]],
        np.zeros((2, 0, 3)),
    ]
    tokens = [(3 + 2) / 2, 1, 2, 2, 0, 0]  # of a mean reference of each image

    def batch(generator, references):
        images = generator.random((2, 8, 8, 3)).astype("float32")
        return images, np.array(references, "int32")

    model = captioner()
    model.set_weights([np.zeros(weight.shape) for weight in model.weights])
    reward = kr.CIDErReward(end_id=1)
    reward.adapt(np.array(batches[0]))
    terms = [kr.MaximumLikelihood(0.1)]
    tuned = kr.RewardTuning(model, reward=reward, terms=terms, seed=0)
    tuned.compile(keras.optimizers.SGD(0.0))
    history = tuned.fit(each(batches, batch), verbose=0).history
    np.testing.assert_allclose(
        history["mle_loss"], np.mean(tokens) * np.log(5), rtol=1e-5
    )
    assert 0.0 <= history["reward"][0] < 10.0
