"""Malformed files of every reader, and what may become of them.

Each input is a folder of good files, of which one was changed at random. It gives what
the reader documents, or an error of ours with the path of the file. Some of the faults
that this looks for end the process, so run it in one of its own.
"""

import contextlib
import io
import json
import os
import tarfile
import traceback
import warnings
import zipfile

import keras
import numpy as np
from PIL import Image

from keras_reward import CIDErReward, PanopticQualityReward, rewards
from keras_reward.codecs import BoxCodec, ColorPalette
from keras_reward.data import CocoBoxes, CocoCaptions, CocoPanoptic
from keras_reward.evaluation import RewardDistribution, progression
from keras_reward.models import VisionTransformer, load_big_vision

HEIGHT, WIDTH, SIZE = 12, 10, (6, 5)
SECONDS = 5.0  # an input that takes longer is a fault
HOSTILE = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e30, -1e30, 1e308, 2**31, 2**63, 10**30),
    *(float("nan"), float("inf"), "", "0", "1", "../secret.png", "/etc/passwd", ".."),
    *("1.png\0", "\ud800", "a" * 5000, [], [[]], {}, {"id": 1}, [None], [0] * 2000),
    *([[1e30] * 6], [[0.0, 0, 5, 5, 0, 5]], [1, 1, 3, 3], "PPPP", "oooo", [120], [-1]),
)


# Good files.


def picture(seed, classes=256):
    random = np.random.default_rng(seed)
    return random.integers(0, classes, (HEIGHT, WIDTH, 3)).astype("uint8")


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def image_entries():
    size = {"height": HEIGHT, "width": WIDTH}
    return [{"id": i, "file_name": f"{i}.png", **size} for i in (1, 2)]


CATEGORIES = [
    {"id": 17, "name": "cat", "isthing": 1},
    {"id": 187, "name": "sky", "isthing": 0},
]


def boxes():
    run_lengths = {"size": [HEIGHT, WIDTH], "counts": [50, 20, 50]}
    packed = {"size": [HEIGHT, WIDTH], "counts": "b1d0R1"}  # the same, compressed
    polygons = [[1.0, 1.0, 6.0, 1.0, 6.0, 7.0]]
    found = [
        {
            **{"id": i, "image_id": 1 + i % 2, "category_id": (17, 187)[i % 2]},
            **{"bbox": [1, 2, 4, 5], "area": 9.5, "iscrowd": 0, "segmentation": shape},
        }
        for i, shape in enumerate((polygons, run_lengths, packed, polygons))
    ]
    return {
        "images": image_entries(),
        "annotations": found,
        "categories": CATEGORIES,
    }


def captions():
    texts = ("A black cat.", "A sky", "Two cats!")
    found = [
        {"id": i, "image_id": 1 + i % 2, "caption": text}
        for i, text in enumerate(texts)
    ]
    return {"images": image_entries(), "annotations": found}


def panoptic():
    segments = [
        {"id": 1, "category_id": 17, "iscrowd": 0},
        {"id": 2, "category_id": 187},
    ]
    found = [
        {"image_id": i, "file_name": f"{i}.png", "segments_info": segments}
        for i in (1, 2)
    ]
    return {
        "images": image_entries(),
        "annotations": found,
        "categories": CATEGORIES,
    }


def maps(seed):
    pixels = picture(seed, classes=3)
    return pixels * np.uint8([1, 0, 0])


def npz(arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


VIT = {"width": 8, "num_layers": 0, "num_heads": 2}
PICTURES = {f"{i}.png": png(picture(i)) for i in (1, 2)}
MAPS = {f"{i}.png": png(maps(i)) for i in (1, 2)}
CHECKPOINT = {
    "params/embedding/kernel": np.ones((4, 4, 3, 8), "float32"),
    "params/embedding/bias": np.zeros(8, "float32"),
    "params/pos_embedding": np.zeros((1, 9, 8), "float32"),
    "params/Transformer/encoder_norm/scale": np.ones(8, "float32"),
    "params/Transformer/encoder_norm/bias": np.zeros(8, "float32"),
}
DISTRIBUTION = {
    "rewards": np.ones((2, 3), "float32"),
    "log_probs": np.zeros((2, 3), "float32"),
    "greedy": np.zeros(2, "float32"),
}
FILES = {
    **{f"images/{name}": content for name, content in PICTURES.items()},
    **{f"maps/{name}": content for name, content in MAPS.items()},
    "images.tar": tar(PICTURES),
    "boxes.json": json.dumps(boxes()).encode(),
    "captions.json": json.dumps(captions()).encode(),
    "panoptic.json": json.dumps(panoptic()).encode(),
    "checkpoint.npz": npz(CHECKPOINT),
    "distribution.npz": npz(DISTRIBUTION),
    "log.csv": b"epoch,reward,metric\n0,1.0,0.5\n1,2.0,0.75\n2,1.5,0.6\n",
}


def adapted():
    reward = CIDErReward(end_id=1)
    reward.adapt(np.random.default_rng(0).integers(0, 6, (20, 2, 6)).astype("int32"))
    return reward


CONFIGS = (
    lambda: adapted() + 0.5 * PanopticQualityReward(stuff_classes=(2,)),
    lambda: BoxCodec(num_classes=2, image_size=8, max_boxes=2, num_buckets=9),
    lambda: ColorPalette(40.0),
    lambda: VisionTransformer((8, 8, 3), 4, width=8, num_layers=1, num_heads=2),
    lambda: rewards.get("mean_average_precision") * rewards.get("colorfulness"),
)


# Readers: what they return is checked.


def read_boxes(folder, images="images"):
    reader = CocoBoxes(
        f"{folder}/{images}",
        f"{folder}/boxes.json",
        SIZE,
        max_boxes=3,
        masks=True,
    )
    for pictures, targets in (reader[i] for i in range(len(reader))):
        check_pictures(pictures)
        assert (
            np.isfinite(targets["boxes"]).all() and np.isfinite(targets["area"]).all()
        )
        assert targets["boxes"].min() >= 0 and targets["boxes"].max() <= max(SIZE)
        assert (targets["labels"] < len(reader.class_names)).all()
        assert targets["masks"].max(initial=0) <= 1
    return reader.problems


def read_tar(folder):
    return read_boxes(folder, "images.tar")


def read_captions(folder):
    reader = CocoCaptions(f"{folder}/images", f"{folder}/captions.json", SIZE)
    for pictures, texts in (reader[i] for i in range(len(reader))):
        check_pictures(pictures)
        assert all(isinstance(text, str) for each in texts for text in each)
    return reader.problems


def read_panoptic(folder):
    reader = CocoPanoptic(
        f"{folder}/images", f"{folder}/panoptic.json", f"{folder}/maps", SIZE
    )
    for pictures, found in (reader[i] for i in range(len(reader))):
        check_pictures(pictures)
        assert found.shape[1:] == (*SIZE, 2)
        assert 0 <= found[..., 0].min() <= found[..., 0].max() <= len(CATEGORIES)
    return reader.problems


def check_pictures(pictures):
    assert pictures.shape[1:] == (*SIZE, 3) and pictures.dtype == np.float32
    assert 0 <= pictures.min() <= pictures.max() <= 1


def read_checkpoint(folder):
    model = load_big_vision(f"{folder}/checkpoint.npz", vision_transformer())
    for weight in model.weights:
        assert np.isfinite(keras.ops.convert_to_numpy(weight)).all()


MODELS = []


def vision_transformer():
    if not MODELS:
        MODELS.append(VisionTransformer((12, 12, 3), 4, **VIT))
    return MODELS[0]


def read_distribution(folder):
    found = RewardDistribution.load(f"{folder}/distribution.npz")
    assert found.rewards.shape == found.log_probs.shape


def read_log(folder):
    found = progression(f"{folder}/log.csv", reward="reward", metric="metric")
    for values in found[:3]:
        assert len(values) == len(found.epochs) and np.isfinite(values).all()


READERS = {
    read_boxes: ("boxes.json", "boxes.json", "boxes.json", "images/1.png"),
    read_tar: ("images.tar", "images.tar", "boxes.json"),
    read_captions: ("captions.json",),
    read_panoptic: ("panoptic.json", "panoptic.json", "maps/1.png", "images/2.png"),
    read_checkpoint: ("checkpoint.npz",),
    read_distribution: ("distribution.npz",),
    read_log: ("log.csv",),
}


# Changes of one file.


def flipped(content, random):
    content = bytearray(content)
    for _ in range(random.integers(1, 6)):
        content[random.integers(len(content))] = random.integers(256)
    return bytes(content)


def cut(content, random):
    return content[: random.integers(len(content))]


def spliced(content, random):
    first, second = sorted(random.integers(0, len(content), 2).tolist())
    return [
        content[:first] + content[second:],
        content[:second] + content[first:],
        content[:first] + random.bytes(30) + content[first:],
        content + content,
    ][random.integers(4)]


BYTES = (flipped, flipped, cut, spliced)


def places(value, path=()):
    """The paths of all values within JSON's lists and objects."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, each in inner:
        yield from places(each, (*path, key))


def with_change(value, path, change):
    """A copy of JSON's lists and objects, in which one value is another."""
    if not path:
        return change(value)
    key, *rest = path
    copy = value.copy()
    copy[key] = with_change(value[key], rest, change)
    return copy


def hostile(value, random):
    """What takes the place of a value."""
    kind = random.random()
    if kind < 0.7:
        return HOSTILE[random.integers(len(HOSTILE))]
    if kind < 0.8 and isinstance(value, dict) and value:
        gone = list(value)[random.integers(len(value))]
        return {k: v for k, v in value.items() if k != gone}
    if kind < 0.9 and isinstance(value, list) and value:
        return [*value, value[random.integers(len(value))], *value[:1]]
    if isinstance(value, str):
        return value + "".join(chr(int(i)) for i in random.integers(33, 127, 5))
    return [[value]] if kind < 0.95 else str(value)


def changed_json(value, random):
    for _ in range(random.integers(1, 4)):
        options = list(places(value))[1:] or [()]
        path = options[random.integers(len(options))]
        value = with_change(value, path, lambda held: hostile(held, random))
    return value


def changed_npz(content, random):
    """A member whose bytes, or whose header, are others."""
    file, target = io.BytesIO(content), io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        chosen = names[random.integers(len(names))]
        for name in names:
            held = source.read(name)
            if name == chosen:
                held = HEADERS[random.integers(len(HEADERS))](held, random)
            archive.writestr(name, held, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def header(shape, kind="<f4"):
    def replace(held, random):
        file = io.BytesIO()
        form = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, form)
        return file.getvalue() + held[128:]

    return replace


HEADERS = (
    *(flipped, cut, spliced, header((10**13,)), header((-8,)), header((2**40, 2**40))),
    *(
        header((8,), "|O"),
        header((8,), "<U4"),
        header((8,), "<c8"),
        header((8,), "<M8"),
    ),
    *(header((2,), "<f8"), header((4,), "<f8"), header((4,), "|V8"), header(())),
    lambda held, random: b"",
)


def damaged(name, content, random):
    """The content of a file, changed."""
    if name.endswith(".json") and random.random() < 0.85:
        value = changed_json(json.loads(content), random)
        return json.dumps(value).encode()
    if name.endswith(".npz") and random.random() < 0.6:
        return changed_npz(content, random)
    return BYTES[random.integers(len(BYTES))](content, random)


# What may come of it.


def try_reader(folder, random):
    """Reads a damaged folder: the name, what became of it, and the fault, or None."""
    readers = list(READERS)
    reader = readers[random.integers(len(readers))]
    names = READERS[reader]
    name = names[random.integers(len(names))]
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(damaged(name, FILES[name], random))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problems = reader(folder)
        kind, fault = ("counted problem" if problems else "read"), None
    except AssertionError as error:
        kind, fault = "read", f"what was read is wrong: {traceback.format_exc()[-300:]}"
        del error
    except Exception as error:
        kind, fault = type(error).__name__, fault_of_error(error, folder)
    with open(path, "wb") as file:
        file.write(FILES[name])
    return f"{reader.__name__} of {name}", kind, fault


def fault_of_error(error, folder):
    places = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, TypeError | ValueError | OSError):
        where = " <- ".join(f"{p.filename[-30:]}:{p.lineno}" for p in places[::-1][:5])
        return f"{type(error).__name__}: {str(error)[:200]} {where}"
    if "keras_reward" not in places[-1].filename or folder not in str(error):
        return f"not a message of ours: {type(error).__name__}: {str(error)[:300]}"
    return None


def try_config(random):
    """Makes an object from a damaged config: what became of it, and the fault."""
    number = int(random.integers(len(CONFIGS)))
    if not SERIALIZED:
        SERIALIZED.extend(
            keras.saving.serialize_keras_object(make()) for make in CONFIGS
        )
    config = changed_json(json.loads(json.dumps(SERIALIZED[number])), random)
    try:
        keras.saving.deserialize_keras_object(config)
    except (TypeError, ValueError) as error:
        return f"config {number}", type(error).__name__, None
    except Exception as error:
        # Keras's own reading of a config; ours are wrapped by it in a TypeError.
        places = traceback.extract_tb(error.__traceback__)
        if "keras_reward" in places[-1].filename:
            return f"config {number}", type(error).__name__, repr(error)[:300]
        return f"config {number}", f"Keras's {type(error).__name__}", None
    return f"config {number}", "made", None


SERIALIZED = []


def prepare(folder):
    """Writes the good files."""
    for name, content in FILES.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    with open(os.path.join(folder, "secret.png"), "wb") as file:
        file.write(png(picture(9)))


def run(folder, first, last, seed, report, clock):
    """Tries inputs `first` to `last`; calls `report(number, name, kind, fault)`."""
    prepare(folder)
    for number in range(first, last):
        random = np.random.default_rng((seed, number))
        start = clock()
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            is_config = random.random() < 0.1
            result = try_config(random) if is_config else try_reader(folder, random)
        name, kind, fault = result
        if clock() - start > SECONDS:
            fault = f"took {clock() - start:.1f} seconds; {fault}"
        report(number, name, kind, fault)
