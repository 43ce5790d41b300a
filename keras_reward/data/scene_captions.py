"""Five different captions of a scene, from a small grammar."""

import itertools
from typing import NamedTuple

# fmt: off
SINGULAR = ("zero", "one", "two", "three", "four",
            "five", "six", "seven", "eight", "nine")
PLURAL = ("zeros", "ones", "twos", "threes", "fours",
          "fives", "sixes", "sevens", "eights", "nines")
# fmt: on
COUNTS = {2: "two", 3: "three"}
# Where the first group of digits is relative to the second one, and the reverse.
RELATIONS = {"vertical": ("above", "below"), "horizontal": ("left of", "right of")}
PLACES = {
    "vertical": ("at the top", "at the bottom"),
    "horizontal": ("on the left", "on the right"),
}


class Group(NamedTuple):
    """Equal digits next to each other.

    Attributes:
        count: number of digits, 1 to 3.
        digit: the digit, 0 to 9.
    """

    count: int
    digit: int


class Layout(NamedTuple):
    """What the captions of a scene describe.

    Attributes:
        groups: one or two `Group`s of different digits, the upper or left one first.
        axis: `"vertical"` if one group is above the other, or `"horizontal"`.
        place: place of a single group, 0 if it is at the top or on the left, else 1.
    """

    groups: tuple
    axis: str
    place: int


def wordings(layout):
    """All captions that a scene may have.

    The captions imitate five people. Each has a style with a few equally likely
    wordings. The first style is brief and does not say where the digits are. The others
    do, each with several wordings. So the brief caption is the most likely one,
    although most captions say more.

    Args:
        layout: a `Layout`.

    Returns:
        Five lists of captions that have no caption in common.
    """
    if len(layout.groups) == 1:
        return wordings_of_one(layout)
    first, second = map(noun_phrase, layout.groups)
    relation, inverse = RELATIONS[layout.axis]
    verb, pronoun = agreement(layout.groups[0])
    other_verb, _ = agreement(layout.groups[1])
    ahead = f"{first} {relation} {second}"
    behind = f"{second} {inverse} {first}"
    return [
        [f"{first} and {second}"],
        [ahead, f"a picture of {ahead}", f"a photo of {ahead}"],
        [f"there {verb} {ahead}", f"we see {ahead}"],
        [behind, f"there {other_verb} {behind}", f"we see {behind}"],
        [f"this shows {ahead}", f"{first} with {second} {inverse} {pronoun}"],
    ]


def wordings_of_one(layout):
    """`wordings` of a scene with one group."""
    group = layout.groups[0]
    digits = noun_phrase(group)
    verb, _ = agreement(group)
    place = PLACES[layout.axis][layout.place]
    placed = f"{digits} {place}"
    return [
        [digits],
        [placed, f"a picture of {placed}", f"a photo of {placed}"],
        [f"there {verb} {placed}", f"we see {placed}"],
        [f"{place} {verb} {digits}", f"{place} we see {digits}"],
        [f"this shows {placed}", f"only {placed}"],
    ]


def noun_phrase(group):
    """ "a three", "an eight" or "two sevens"."""
    if group.count > 1:
        return f"{COUNTS[group.count]} {PLURAL[group.digit]}"
    noun = SINGULAR[group.digit]
    return f"{'an' if noun == 'eight' else 'a'} {noun}"


def agreement(group):
    """Verb and pronoun for a group."""
    return ("is", "it") if group.count == 1 else ("are", "them")


def named_digits(caption):
    """The number of each digit that a caption names.

    Args:
        caption: any string of lower-case words.

    Returns:
        A list of ten numbers. Digits only count with a number: "a three and sevens"
        names one 3 and no 7.
    """
    counts = {"a": 1, "an": 1, **{word: count for count, word in COUNTS.items()}}
    named = [0] * 10
    words = caption.split()
    for number, noun in itertools.pairwise(words):
        nouns = SINGULAR if counts.get(number) == 1 else PLURAL
        if number in counts and noun in nouns:
            named[nouns.index(noun)] += counts[number]
    return named
