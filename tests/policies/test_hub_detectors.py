"""`DetectionPolicy` on the detectors of KerasHub and KerasCV."""

import importlib.util

import keras
import numpy as np
import pytest

pytestmark = [pytest.mark.hub, pytest.mark.slow]
DETECTORS = ["retinanet", "dfine", "keras_cv_retinanet", "yolo"]


def own_and_ours(name):
    """What a detector's own decoder leaves without a threshold, and our candidates."""
    import hub_detectors

    from keras_reward import DetectionPolicy

    model = getattr(hub_detectors, name)()
    x = keras.ops.convert_to_tensor(hub_detectors.images(2))
    decoder = model.prediction_decoder
    decoder.confidence_threshold, decoder.max_detections = 0.0, 6
    own = model.decode_predictions(model(x), x)
    policy = DetectionPolicy(6).bind(model)
    ours = policy.greedy_outputs(x, policy.encode(x))
    to_numpy = keras.ops.convert_to_numpy
    return [{k: to_numpy(v) for k, v in nest.items()} for nest in (own, ours)]


def can_decode(name):
    """Whether a detector's own decoder runs on this backend."""
    of_keras_cv = name in ("keras_cv_retinanet", "yolo")
    needs_torchvision = of_keras_cv and keras.config.backend() == "torch"
    return not needs_torchvision or importlib.util.find_spec("torchvision")


@pytest.mark.parametrize("name", filter(can_decode, DETECTORS))
def test_candidates_are_the_detectors_own(name, hub):
    own, ours = hub(own_and_ours, name)
    labels = own["labels" if "labels" in own else "classes"]
    assert (ours["labels"] == labels).all()
    assert (ours["labels"] >= 0).sum() > 4
    valid = labels >= 0
    np.testing.assert_allclose(
        ours["boxes"][valid], own["boxes"][valid], rtol=1e-3, atol=1e-2
    )
    np.testing.assert_allclose(
        ours["scores"][valid], own["confidence"][valid], rtol=1e-4
    )


def tune(name, path):
    """Tunes a detector, saves and loads it, and returns what became of it."""
    import hub_detectors

    from keras_reward import DetectionPolicy, RecallReward, RewardTuning

    model = getattr(hub_detectors, name)()
    reward = RecallReward(bounding_box_format=model.bounding_box_format)
    tuned = RewardTuning(model, reward, DetectionPolicy(6), seed=0)
    tuned.compile(keras.optimizers.Adam(1e-4))
    x, y = hub_detectors.images(4), hub_detectors.targets(4)
    history = tuned.fit(x, y, batch_size=2, epochs=1, verbose=0).history
    logs = tuned.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    outputs = tuned.predict(x, batch_size=2, verbose=0)
    tuned.save(path)
    again = keras.models.load_model(path).predict(x, batch_size=2, verbose=0)
    return history, logs, outputs, again


# Compiling the others takes minutes.
TUNED = DETECTORS if keras.config.backend() == "torch" else DETECTORS[:1]


@pytest.mark.parametrize("name", TUNED)
def test_fit_evaluate_predict_and_save(name, hub, tmp_path):
    history, logs, outputs, again = hub(tune, name, str(tmp_path / "tuned.keras"))
    assert np.isfinite(history["loss"]).all() and np.isfinite(logs["reward"])
    assert outputs["boxes"].shape == (4, 6, 4)
    assert outputs["shown"].shape == outputs["labels"].shape == (4, 6)
    for key, values in outputs.items():
        np.testing.assert_allclose(again[key], values, rtol=1e-3, atol=1e-3)


def tune_raw():
    import hub_detectors

    from keras_reward import RecallReward, Reward, RewardTuning

    seen = []

    class Sees(Reward):
        def call(self, y_true, y_pred):
            return RecallReward(bounding_box_format="yxyx")(y_true, y_pred)

        def prepare(self, y_true):
            seen.append(y_true)
            return y_true

    model = hub_detectors.retinanet_of_raw_images()
    tuned = RewardTuning(model, Sees())
    tuned.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    y = hub_detectors.targets(2, size=32)
    tuned.evaluate(x, y, verbose=0)
    tuned.fit(x, y, verbose=0)
    outputs = tuned.predict(x, verbose=0)
    to_numpy = keras.ops.convert_to_numpy
    return y, [{k: to_numpy(v) for k, v in given.items()} for given in seen], outputs


def test_raw_images_and_boxes_are_preprocessed(hub):
    y, seen, outputs = hub(tune_raw)
    assert len(seen) == 2
    valid = y["labels"] >= 0
    for given in seen:  # from 32 to 64 pixels
        order = np.argsort(given["labels"].sum(1))  # `fit` shuffles
        given = {name: values[order] for name, values in given.items()}
        assert (given["labels"] == y["labels"]).all()
        np.testing.assert_allclose(given["boxes"][valid], 2 * y["boxes"][valid])
    assert outputs["boxes"].max() > 40


def other_format():
    import hub_detectors

    from keras_reward import DetectionPolicy

    model = hub_detectors.retinanet_of_raw_images("xyxy")
    try:
        DetectionPolicy().bind(model)
    except ValueError as error:
        return str(error)


def test_a_preprocessor_of_other_boxes_is_refused(hub):
    message = hub(other_format)
    assert "image_converter" in message and "'xyxy'" in message
