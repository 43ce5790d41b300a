"""What COCO's annotations say of crowds."""

from keras_reward.data.coco_files import is_flag
from keras_reward.forms.boxes import CROWD_KEYS


def crowd_of(annotation):
    """Whether an annotation is of a crowd, False if it does not say.

    Args:
        annotation: a JSON object.

    Returns:
        A bool; None for a value other than 0, 1, false and true, such as "0", which
        Python counts as true, and for keys that say different things.
    """
    found = [annotation[key] for key in CROWD_KEYS if annotation.get(key) is not None]
    if not all(map(is_flag, found)) or len(set(found)) > 1:
        return None
    return any(found)
