"""What both UViM examples share: models of a preset's size, built or loaded."""

import pathlib

import keras

from keras_reward.models import (
    UViM,
    UViMStageOne,
    VisionEncoderDecoder,
    VisionTransformer,
    load_big_vision,
)

# Sizes of the published models (Kolesnikov et al. 2022): a base model like ViT-B and a
# language model like ViT-L.
PUBLISHED = {
    "image_size": 512,
    "patch_size": 16,
    "stage_one": {
        "code_grid": (16, 16),
        "num_codes": 4096,
        "width": 768,
        "oracle_layers": 6,
        "base_layers": 12,
        "num_heads": 12,
    },
    "encoder": {"width": 1024, "num_layers": 24, "num_heads": 16},
    "decoder": {"num_layers": 24, "num_heads": 16, "attention_bias": False},
}


def build_stage_one(preset, labels, seed):
    """Oracle, dictionary and base model.

    Args:
        preset: namespace with the keys of `PUBLISHED`.
        labels: what the base model makes, a `ColorizationTask` or `PanopticTask`.
        seed: of the first weights.
    """
    shape = (preset.image_size, preset.image_size, 3)
    return UViMStageOne(labels, shape, preset.patch_size, seed=seed, **preset.stage_one)


def build_language_model(preset, first):
    """Writes the codes of the first stage."""
    encoder = VisionTransformer(first.image_shape, preset.patch_size, **preset.encoder)
    sizes = {"vocabulary_size": first.vocabulary_size, "max_length": first.code_length}
    return VisionEncoderDecoder(encoder, end_id=None, **sizes, **preset.decoder)


def load(args, preset, labels, checkpoints):
    """A model that was trained before, or None.

    Args:
        args: the command line's `stages`, `checkpoint`, `preset` and `seed`.
        preset, labels: as of `build_stage_one`.
        checkpoints: names of big_vision's files, of the first and the second stage.
    """
    if args.stages and args.checkpoint:
        raise SystemExit("Expected --stages or --checkpoint. Received: both")
    if args.stages:
        (path,) = find_files("--stages", args.stages, ["mle.keras"])
        return check_model(keras.models.load_model(path), path, preset, labels)
    if args.checkpoint:
        if args.preset != "paper":
            raise SystemExit(
                "--checkpoint has models of the published size: expected --preset "
                f"paper. Received: --preset {args.preset}"
            )
        paths = find_files("--checkpoint", args.checkpoint, checkpoints)
        first = load_big_vision(paths[0], build_stage_one(preset, labels, args.seed))
        second = load_big_vision(paths[1], build_language_model(preset, first))
        return UViM(first, second)
    return None


def find_files(argument, folder, names):
    paths = [pathlib.Path(folder) / name for name in names]
    for path in paths:
        if not path.is_file():
            raise SystemExit(
                f"Expected {argument} to be a folder with {' and '.join(names)}. "
                f"Received: no {path}"
            )
    return paths


def check_model(model, path, preset, labels):
    """The model, if it is one for this preset and these labels."""
    side, config = None, None
    if isinstance(model, UViM):
        side, config = model.stage_one.image_shape[0], model.stage_one.task.get_config()
    if (side, config) != (preset.image_size, labels.get_config()):
        raise SystemExit(
            f"Expected a UViM model of the same data and --preset in {path}, for "
            f"{preset.image_size} pixels, {labels.get_config()}. "
            f"Received: {type(model).__name__} for {side} pixels, {config}"
        )
    return model
