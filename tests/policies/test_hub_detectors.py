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
    drawn = "predicted" if name == "dfine" else None
    policy = DetectionPolicy(6, tune_boxes=drawn)
    tuned = RewardTuning(model, reward, policy, seed=0)
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


def sides_of_dfine(layout):
    """What a D-FINE predicts, and what is drawn from it, in NumPy."""
    import hub_detectors

    from keras_reward import DetectionPolicy

    model = hub_detectors.dfine(layout, decoder_layers=2)  # the last one counts
    generator = np.random.default_rng(0)
    for weight in model.weights:  # else all distances are as likely
        if "bbox_embed" in weight.path:
            weight.assign(generator.normal(size=weight.shape, scale=0.5))
    x = keras.ops.convert_to_tensor(hub_detectors.images(2))
    policy = DetectionPolicy(5, tune_boxes="predicted").bind(model)
    context = policy.encode(x)
    decoder = model.backbone.decoder
    samples = policy.sample(context, 400, seed=1)
    likelihood = policy.likelihood(context, samples)
    drawn = {
        "boxes": policy.decode(x, samples, context)["boxes"],
        "log_probs": likelihood.position_log_probs,
        "scale": decoder.reg_scale,
        "up": decoder.upsampling_factor,
    }
    del context["outputs"]
    nests = context, samples, drawn, policy.mode(context)
    to_numpy = keras.ops.convert_to_numpy
    return keras.tree.map_structure(to_numpy, nests), decoder.max_num_bins


@pytest.mark.parametrize("layout", ["yxyx", "rel_xyxy"])
def test_sides_are_drawn_as_a_dfine_predicts_them(layout, hub):
    (context, samples, drawn, mode), bins = hub(sides_of_dfine, layout)
    valid = context["valid"]
    assert valid.any() and bins == 32
    # Peng et al. 2024, equation 3: a = up, c = 1 / scale, times 1 / c.
    a, scale = drawn["up"].item(), drawn["scale"].item()
    steps = (a * scale + 1) ** (np.arange(1, bins // 2) / (bins / 2 - 1))
    half = np.append(steps - 1, 2 * a * scale)
    distances = np.concatenate([-half[::-1], [0], half])
    logits = context["sides"].astype("float64")
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)

    def boxes_at(distance, references):
        cx, cy, w, h = np.moveaxis(references, -1, 0)
        left, top, right, bottom = np.moveaxis(0.5 + distance / scale, -1, 0)
        sides = [cx - left * w, cy - top * h, cx + right * w, cy + bottom * h]
        if layout == "yxyx":
            sides = [64 * sides[i] for i in (1, 0, 3, 2)]
        return np.stack(sides, -1)

    at_means = boxes_at(p @ distances, context["references"])
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(context["boxes"][valid], at_means[valid], **tolerance)
    chosen = samples["boxes"]
    assert chosen.min() >= 0 and chosen.max() <= bins
    at_drawn = boxes_at(distances[chosen], context["references"][:, None])
    at_drawn = np.where(valid[:, None, :, None], at_drawn, 0).reshape(800, 5, 4)
    np.testing.assert_allclose(drawn["boxes"], at_drawn, **tolerance)
    frequent = np.stack([(chosen == k).mean(1) for k in range(bins + 1)], -1)
    np.testing.assert_allclose(frequent[valid], p[valid], atol=0.13)
    assert np.ptp(p[valid], axis=-1).max() > 0.2
    np.testing.assert_array_equal(mode["boxes"], logits.argmax(-1))
    log_p = np.broadcast_to(np.log(p)[:, None], (*chosen.shape, bins + 1))
    log_p = np.take_along_axis(log_p, chosen[..., None], axis=-1)[..., 0]
    seen = np.logical_and(samples["shown"], valid[:, None])
    expected = np.where(seen, log_p.sum(-1), 0)
    np.testing.assert_allclose(
        drawn["log_probs"][..., :5], expected, rtol=1e-3, atol=1e-3
    )
