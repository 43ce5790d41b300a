"""Finding and reading COCO's files."""

import collections
import json
import pathlib

SPLITS = {
    "train": ("train", "train2017", "train2014"),
    "eval": ("eval", "val", "val2017", "val2014"),
}
SHOWN_NAMES = 20  # of categories, in messages
ANNOTATIONS = {  # file names for each kind, best first
    "boxes": ("boxes", "instances"),
    "instances": ("instances",),
    "captions": ("captions",),
    "panoptic": ("panoptic",),
}


def coco_files(folder, split, kind):
    """Finds the files of a dataset in COCO's format.

    Two layouts are known: COCO's own,

    ```
    annotations/instances_val2017.json  captions_val2017.json  panoptic_val2017.json
    annotations/panoptic_val2017/*.png
    val2017/*.jpg
    ```

    and a flat one with images in tar files,

    ```
    boxes_eval.json  instances_eval.json  captions_eval.json  panoptic_eval.json
    panoptic_eval.tar  images_eval.tar
    ```

    Args:
        folder: the folder that contains these.
        split: the name in the files, such as `"val2017"`; or `"train"` or `"eval"` for
            whichever of the usual names exists.
        kind: `"boxes"` (from a file of boxes if there is one, else of instances),
            `"instances"`, `"captions"` or `"panoptic"`.

    Returns:
        A dict of paths, the first arguments of the reader: `images`, `annotations`, and
        `maps` for `"panoptic"`.

    Raises:
        FileNotFoundError: if files are missing, with the names that were tried.

    Example:

    ```python
    import pathlib
    from keras_reward.data import coco_files

    pathlib.Path("coco/annotations").mkdir(parents=True)
    pathlib.Path("coco/annotations/captions_val2017.json").touch()
    pathlib.Path("coco/val2017").mkdir()
    coco_files("coco", "eval", "captions")["images"]  # "coco/val2017"
    ```
    """
    if kind not in ANNOTATIONS:
        raise ValueError(
            f"`kind` must be one of {', '.join(map(repr, ANNOTATIONS))}. "
            f"Received: kind={kind!r}"
        )
    names = SPLITS.get(split, (split,))
    tried = {
        "annotations": [
            f"{place}{what}_{name}.json"
            for what in ANNOTATIONS[kind]
            for name in names
            for place in ("annotations/", "")
        ],
        "images": [
            pattern.format(name)
            for name in names
            for pattern in ("{}", "images/{}", "images_{}", "images_{}.tar", "{}.tar")
        ],
    }
    if kind == "panoptic":
        tried["maps"] = [
            f"{place}panoptic_{name}{ending}"
            for name in names
            for place in ("annotations/", "")
            for ending in ("", ".tar")
        ]
    return {part: first_existing(folder, paths) for part, paths in tried.items()}


def first_existing(folder, names):
    """The path of the first of some names that a folder has."""
    for name in names:
        path = pathlib.Path(folder, name)
        if path.exists():
            return str(path)
    raise FileNotFoundError(
        f"No COCO files of that split in {str(folder)!r}: none of {', '.join(names)}"
    )


def read_annotations(path):
    """The dictionary in one of COCO's JSON files, with `images` and `annotations`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not JSON or not COCO's, with the path.
    """
    try:
        data = json.loads(pathlib.Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON, perhaps cut off in a download: {error}"
        ) from error
    except RecursionError:  # whose traceback has thousands of lines
        raise ValueError(
            f"{path} is not in COCO's format: lists or objects are nested too deeply "
            "to be read. Received: more than Python's limit for recursion"
        ) from None
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"{path} is not in COCO's format: there must be an object with lists "
                f"`images` and `annotations`. Received: {found}"
            )
    return data


def read_categories(data, path):
    """The `categories` of COCO's JSON by id, in the order of the ids.

    Args:
        data: the JSON file's dictionary.
        path: path of the file, for errors.

    Raises:
        ValueError: if there is no such list, or if a category has no integer `id` or no
            `name`, or the same as another one, or an `isthing` other than 0 and 1; with
            the path.
    """
    categories = data.get("categories")
    is_list = isinstance(categories, list)
    for category in categories if is_list else [categories]:
        if not is_list or not is_category(category):
            raise ValueError(
                f"{path} must have a list `categories` of objects with an integer `id` "
                f"and a string `name`. Received: {repr(category)[:200]}"
            )
        if not is_flag(category.get("isthing", 1)):
            raise ValueError(
                f"{path} must have `categories` whose `isthing` is 0 or 1. "
                f"Received: {repr(category)[:200]}"
            )
    for key in ("id", "name"):
        counts = collections.Counter(category[key] for category in categories)
        repeated = [repr(v) for v, n in counts.items() for _ in range(n) if n > 1]
        if repeated:
            raise ValueError(
                f"{path} must have `categories` with a different `{key}` each. "
                f"Received: {listed(repeated)}"
            )
    return {c["id"]: c for c in sorted(categories, key=lambda c: c["id"])}


def is_category(value):
    """Whether a JSON value is a valid category."""
    return (
        isinstance(value, dict)
        and is_integer_id(value.get("id"))
        and isinstance(value.get("name"), str)
    )


def choose_classes(categories, names, path):
    """Names of the classes in the order of their labels.

    Args:
        categories: from `read_categories`.
        names: the names to keep, or None for all.
        path: path of the file, for errors.
    """
    known = tuple(category["name"] for category in categories.values())
    if names is None:
        return known
    unknown = set(names) - set(known)
    if isinstance(names, str) or unknown or len(set(names)) < len(names):
        raise ValueError(
            f"`categories` must be a list of different names of those in {path}: "
            f"{listed(known)}. Received: categories={names!r}"
        )
    return tuple(names)


def listed(names):
    """Names for a message, the first ones if there are many."""
    names = list(names)
    more = f", and {len(names) - SHOWN_NAMES} more" if names[SHOWN_NAMES:] else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def is_id(value):
    """Whether a JSON value can be an id: a string, or an integer of 64 bits."""
    return isinstance(value, str) or is_integer_id(value)


def is_integer_id(value):
    return is_integer(value) and -(2**63) <= value < 2**63


def is_integer(value):
    """Whether a JSON value is an integer, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value):
    """Whether a JSON value is a number, which a string of digits is not."""
    return is_integer(value) or isinstance(value, float)


def is_flag(value):
    """Whether a JSON value is 0, 1, false or true; "0" would count as true."""
    return isinstance(value, int) and value in (0, 1)
