"""Standard models of other libraries are tuned unchanged.

Small and with random weights. Those of KerasHub and KerasCV run in the process that may
import them (`hub` in conftest.py).
"""

import keras
import numpy as np
import pytest
from tiny import randomize

pytestmark = [pytest.mark.hub, pytest.mark.slow]

CLASSES = 3


def images_and_labels(size=32):
    """Images whose left or right half is bright, and labels that say which."""
    generator = np.random.default_rng(0)
    x = 0.1 * generator.random((8, size, size, 3))
    y = np.zeros((8, size, size), "int64")
    for i in range(8):
        half = np.s_[: size // 2] if i % 2 else np.s_[size // 2 :]
        x[i, :, half] += 0.9
        y[i, :, half] = 1 + i % 2
    y[:, 0] = 255  # a void line
    return x.astype("float32"), y


def tune(model, reward, x, y, epochs, learning_rate=3e-3, **arguments):
    """Rewards of the greedy outputs before and after, and of samples by epoch."""
    from keras_reward import RewardTuning

    tuned = RewardTuning(model, reward=reward, num_samples=8, seed=0, **arguments)
    assert tuned.model is model
    tuned.compile(keras.optimizers.Adam(learning_rate))
    before = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    history = tuned.fit(x, y, epochs=epochs, batch_size=8, verbose=0).history
    after = tuned.evaluate(x, y, verbose=0, return_dict=True)["reward"]
    return before, after, history["reward"], tuned.predict(x, verbose=0).shape


def tune_keras_hub_segmenter():
    import hub_models
    import keras_hub

    from keras_reward import MeanIoUReward

    backbone = hub_models.segformer_backbone(max_drop_path_rate=0.1)
    model = keras_hub.models.SegFormerImageSegmenter(backbone, num_classes=CLASSES)
    reward = MeanIoUReward(num_classes=CLASSES)
    return tune(model, reward, *images_and_labels(), epochs=30)


def tune_keras_cv_segmenter():
    import keras_cv

    from keras_reward import CategoricalPolicy, DiceReward

    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[8, 8, 8, 8],
        stackwise_blocks=[1, 1, 1, 1],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=(32, 32, 3),
    )
    model = keras_cv.models.DeepLabV3Plus(backbone, CLASSES, projection_filters=8)
    return tune(
        model,
        DiceReward(num_classes=CLASSES),
        *images_and_labels(),
        epochs=30,
        policy=CategoricalPolicy(from_logits=False),  # KerasCV ends in a softmax
    )


@pytest.mark.chance
@pytest.mark.parametrize(
    "function", [tune_keras_hub_segmenter, tune_keras_cv_segmenter]
)
def test_a_segmenter_gains_reward(hub, function):
    _, _, rewards, shape = hub(function)
    assert shape == (8, 32, 32)
    # What Reinforce raises. Some first weights end with one class everywhere, which is
    # better than their samples and may be worse than their greedy outputs.
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.03


@pytest.mark.chance
def test_an_applications_classifier_gains_a_reward_of_python():
    from keras_reward import HostReward

    def correct(y_true, y_pred):
        return [float(a == b) for a, b in zip(y_true, y_pred, strict=True)]

    x, _ = images_and_labels()
    model = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=5, classifier_activation=None
    )
    for layer in model.layers[:-1]:
        layer.trainable = False
    randomize(model.layers[-1])
    others = (model.predict(x, verbose=0).argmax(-1) + 1) % 5
    before, after, _, shape = tune(
        model, HostReward(correct), x, np.full(8, others[0]), 20, 0.1
    )
    assert shape == (8,)
    assert before < 0.5
    assert after == 1.0
