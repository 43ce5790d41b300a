"""`MaximumLikelihood` of detectors is the loss that they are trained with."""

import keras
import numpy as np
import pytest

pytestmark = [pytest.mark.hub, pytest.mark.slow]


def steps(name):
    """Weights and the loss, for a step of the detector's own and for one of ours."""
    import hub_detectors

    from keras_reward import DetectionPolicy, MaximumLikelihood, RewardTuning

    def nothing(y_true, y_pred):
        return 0.0 * y_pred["scores"][:, 0]

    x, y = hub_detectors.images(4), hub_detectors.targets(4)
    y["boxes"][1:, 0] = [2, 3, 60, 58]  # near an anchor
    results = []
    for tunes in (False, True):
        keras.utils.set_random_seed(0)
        model = getattr(hub_detectors, name)()
        of_keras_cv = type(model).__module__.startswith("keras_cv")
        losses = {"classification_loss": "auto", "box_loss": "auto"}
        if of_keras_cv:
            losses = {"classification_loss": "binary_crossentropy", "box_loss": "ciou"}
            if name == "keras_cv_retinanet":
                losses = {"classification_loss": "focal", "box_loss": "smoothl1"}
        model.compile(optimizer=keras.optimizers.SGD(1e-3), **losses)
        if tunes:
            tuned = RewardTuning(
                model,
                nothing,
                DetectionPolicy(6),
                terms=[MaximumLikelihood()],
                model_training=True,
            )
            tuned.compile(keras.optimizers.SGD(1e-3))
            loss = tuned.train_on_batch(x, y, return_dict=True)["mle_loss"]
        else:
            truth = y
            if of_keras_cv:
                is_object = (y["labels"] >= 0)[..., None]
                boxes = np.where(is_object, y["boxes"], -1.0)
                truth = {"boxes": boxes, "classes": y["labels"]}
            history = keras.Model.fit(model, x, truth, batch_size=4, verbose=0).history
            loss = history["loss"][0]
        weights = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
        results.append((weights, float(loss)))
    return results


NAMES = ["retinanet"]
if keras.config.backend() == "torch":
    NAMES += ["keras_cv_retinanet", "yolo"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_detectors_own(name, hub):
    (own, own_loss), (ours, our_loss) = hub(steps, name)
    assert np.isfinite(own_loss) and own_loss > 0
    np.testing.assert_allclose(our_loss, own_loss, rtol=1e-5)
    for expected, found in zip(own, ours, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def loss_of_dfine(replaced):
    import hub_detectors

    from keras_reward import DetectionPolicy

    model = hub_detectors.dfine()
    model.compile()
    if replaced:
        model.compute_loss = lambda x, y, y_pred, sample_weight, training: y["labels"]
    x = keras.ops.convert_to_tensor(hub_detectors.images(2))
    policy = DetectionPolicy(6).bind(model)
    try:
        policy.ready_own_loss()
        loss = policy.own_loss(x, hub_detectors.targets(2), policy.encode(x))
    except ValueError as error:
        return str(error)
    return np.asarray(loss)


def test_the_loss_of_a_dfine_must_be_replaced(hub):
    assert "objects of the first one" in hub(loss_of_dfine, False)
    assert hub(loss_of_dfine, True).shape == (2, 3)


def goes_on():
    """Tunes with batches of two sizes, and then trains the detector itself."""
    import hub_detectors

    from keras_reward import (
        DetectionPolicy,
        MaximumLikelihood,
        RecallReward,
        RewardTuning,
    )

    x, y = hub_detectors.images(5), hub_detectors.targets(5)
    model = hub_detectors.retinanet()
    model.compile(keras.optimizers.SGD(1e-3))
    reward = RecallReward(bounding_box_format="yxyx")
    terms = [MaximumLikelihood()]
    tuned = RewardTuning(model, reward, DetectionPolicy(6), terms=terms)
    tuned.compile(keras.optimizers.SGD(1e-3))
    tuned.fit(x, y, batch_size=2, epochs=2, verbose=0)
    logs = keras.Model.evaluate(model, x, y, verbose=0, return_dict=True)
    logs |= keras.Model.fit(model, x, y, verbose=0).history
    return {name: float(np.mean(value)) for name, value in logs.items()}


def test_batches_of_other_sizes_and_the_detector_afterwards(hub):
    logs = hub(goes_on)
    assert {"loss", "bbox_regression_loss", "cls_logits_loss"} <= logs.keys()
    assert np.isfinite(list(logs.values())).all()
