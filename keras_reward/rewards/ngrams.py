"""N-grams of padded token ids: their matches, and their frequencies in a corpus.

Functions with a first argument `xp` run on tensors (`xp=keras.ops`) or on the host
(`xp=numpy`).
"""

import numpy as np
from keras import ops

WORD_BITS = 31  # of an int32, without the sign
MAX_ENTRIES = 2**27  # of the captions of COCO, there are about 2^20
MAX_PROBES = 4096
ROOT, UNKNOWN = -1, 0  # the empty n-gram, and any n-gram that is not in the table


# Matching. The positions of a word in a caption are the bits of an int32. A bigram
# occurs where the bits of its first word and the shifted bits of its second are set.


def bit_windows(ids, orders):
    """Splits captions into windows of at most 31 tokens, one bit each.

    Long captions, and those whose length is unknown while tracing, are split into
    several windows. These overlap, so that every n-gram lies completely in the window
    that it starts in.

    Args:
        ids: `(..., T)`.
        orders: the longest n-gram.

    Returns:
        `(windows, starts)`: `(..., W, width)`, and the number of positions of a window
        at which the n-grams that it counts may start.
    """
    length = ids.shape[-1]
    if length is not None and length <= WORD_BITS:
        return ops.expand_dims(ids, -2), length
    starts = WORD_BITS - (orders - 1)
    room = -ops.shape(ids)[-1] % starts + orders - 1
    ids = ops.pad(ids, [(0, 0)] * (len(ids.shape) - 1) + [(0, room)])
    if length is None:
        first = ops.arange(0, ops.shape(ids)[-1] - (orders - 1), starts, dtype="int32")
        inside = ops.arange(WORD_BITS, dtype="int32")
        return ops.take(ids, first[:, None] + inside, axis=-1), starts
    windows = [ids[..., k : k + WORD_BITS] for k in range(0, length, starts)]
    return ops.stack(windows, axis=-2), starts


def to_bits(flags):
    """Packs booleans, `(..., width)` with a width up to 31, into int32: `(...,)`."""
    bits = ops.convert_to_tensor(2 ** np.arange(flags.shape[-1]), dtype="int32")
    packed = ops.sum(ops.where(flags, bits, ops.zeros_like(bits)), axis=-1)
    return ops.cast(packed, "int32")


def popcount(bits):
    """Number of bits set in non-negative int32."""
    bits = bits - ops.bitwise_and(ops.right_shift(bits, 1), 0x55555555)
    pairs = ops.bitwise_and(ops.right_shift(bits, 2), 0x33333333)
    bits = ops.bitwise_and(bits, 0x33333333) + pairs
    bits = ops.bitwise_and(bits + ops.right_shift(bits, 4), 0x0F0F0F0F)
    return ops.right_shift(bits * 0x01010101, 24)


def count_matches(ids, others, lengths, orders):
    """How often the n-gram at each position of a caption occurs in another caption.

    Args:
        ids: `(..., T)` int32. N-grams that extend beyond the caption are counted too:
            the caller must mask them.
        others: `(..., T2)` int32, with leading axes that broadcast with those of `ids`.
        lengths: `(...,)`, the lengths of `others`.
        orders: the longest n-gram.

    Returns:
        A list over n = 1 to `orders` of `(..., T)` int32.
    """
    inside = ops.arange(ops.shape(others)[-1], dtype="int32") < lengths[..., None]
    windows, starts = bit_windows(others, orders)
    inside = to_bits(bit_windows(inside, orders)[0])
    same = ids[..., None, :, None] == windows[..., :, None, :]
    word = ops.bitwise_and(to_bits(same), inside[..., None])
    counts, ngram = [], word
    for order in range(1, orders + 1):
        if order > 1:
            after = ops.concatenate(
                [ngram[..., 1:], ops.zeros_like(ngram[..., :1])], axis=-1
            )
            ngram = ops.bitwise_and(word, ops.right_shift(after, 1))
        count = popcount(ops.bitwise_and(ngram, 2**starts - 1))
        counts.append(ops.cast(ops.sum(count, axis=-2), "int32"))
    return counts


# The table. An n-gram is stored as a pair (number of its first n - 1 words, last word),
# so that only two numbers are compared for any n, and there are no false matches.


def bucket_of(xp, parents, words, buckets):
    """Hashes pairs of int32 to `[0, buckets)`, in wrapping int32 arithmetic.

    `buckets` is a power of two. Shifts are masked, so sign extension has no effect.
    """
    mixed = words * 0x2C1B3C6D
    mixed = xp.bitwise_xor(mixed, xp.bitwise_and(xp.right_shift(mixed, 15), 0x1FFFF))
    mixed = (mixed + parents) * 0x297A2D39
    mixed = xp.bitwise_xor(mixed, xp.bitwise_and(xp.right_shift(mixed, 13), 0x7FFFF))
    mixed = mixed * 0x1B56C4E9
    mixed = xp.bitwise_xor(mixed, xp.bitwise_and(xp.right_shift(mixed, 16), 0xFFFF))
    return xp.bitwise_and(mixed, buckets - 1)


def number_of_buckets(entries):
    """Two to four buckets per entry, so that few entries share one."""
    return 2 ** int(2 * max(entries, 1) - 1).bit_length()


def build_table(parents, words):
    """Sorts distinct pairs by bucket. The pair at index i gets the number i + 1.

    Args:
        parents, words: `(entries,)` int32 NumPy arrays.

    Returns:
        `(columns, directory, probes)`: columns of parents, words and numbers; the first
        row of each bucket; the size of the largest bucket.
    """
    entries = len(words)
    buckets = number_of_buckets(entries)
    bucket = bucket_of(np, parents, words, buckets)
    sizes = np.bincount(bucket, minlength=buckets)
    directory = (np.cumsum(sizes) - sizes).astype("int32")
    probes = max(int(sizes.max()), 1)
    order = np.argsort(bucket, kind="stable")
    # As many rows are probed in the last bucket as in the largest one. Nothing matches
    # the added rows, since numbers of parents are never below ROOT.
    beyond = np.full(probes, ROOT - 1, "int32")
    columns = [
        np.concatenate([column[order], beyond]).astype("int32")
        for column in (parents, words, np.arange(1, entries + 1))
    ]
    return columns, directory, probes


def check_table(sizes, probes):
    """Raises unless a table of n-grams can have these sizes, which a file may claim.

    Args:
        sizes: lengths of the three columns, the directory, and the idf.
        probes: the size of the largest bucket.
    """
    are_sizes = isinstance(sizes, list | tuple) and len(sizes) == 5
    numbers = [*sizes, probes] if are_sizes else [None]
    is_whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    entries = numbers[0] - probes if is_whole else -1
    expected = None
    if 0 <= entries <= MAX_ENTRIES and 0 < probes <= MAX_PROBES:
        columns = [entries + probes] * 3
        expected = [*columns, number_of_buckets(entries), entries + 1]
    if not is_whole or expected != list(sizes):
        raise ValueError(
            f"A table of n-grams has up to {MAX_ENTRIES} entries, and the sizes of its "
            "parts follow from their number. Load a file as it was saved. "
            f"Received: table_sizes={ascii(sizes)[:200]}, probes={ascii(probes)[:50]}"
        )


def look_up(columns, directory, probes, parents, words):
    """The numbers of pairs, UNKNOWN for those that are not in the table.

    Args:
        columns, directory, probes: as `build_table` returns them, as tensors.
        parents, words: int32 of one shape.

    Returns:
        Int32 of that shape.
    """
    row = ops.take(directory, bucket_of(ops, parents, words, directory.shape[0]))
    # All probes are one gather and a maximum. If they came one after the other, XLA's
    # fusion would repeat the earlier ones for each later one.
    rows = row[..., None] + ops.arange(probes, dtype="int32")
    parent, word, number = (ops.take(column, rows) for column in columns)
    hit = ops.logical_and(parent == parents[..., None], word == words[..., None])
    return ops.max(ops.where(hit, number, UNKNOWN), axis=-1)


def look_up_ngrams(columns, directory, probes, ids, orders):
    """Numbers of the n-grams at each position: a list over n of `(..., T)` int32.

    N-grams that extend beyond the array get an arbitrary number.
    """
    numbers = [look_up(columns, directory, probes, ops.full_like(ids, ROOT), ids)]
    words = ids
    for _ in range(1, orders):
        words = ops.concatenate([words[..., 1:], words[..., :1]], axis=-1)
        numbers.append(look_up(columns, directory, probes, numbers[-1], words))
    return numbers


def document_frequencies(ids, lengths, documents, orders):
    """Counts in how many documents n-grams occur, on the host.

    Only n-grams of at least two documents are returned: in CIDEr, the others have the
    same weight as those that never occur.

    Args:
        ids: `(captions, T)` int32 NumPy array.
        lengths: `(captions,)`.
        documents: `(captions,)`, the index of the document that a caption belongs to.
        orders: the longest n-gram.

    Returns:
        `(parents, words, frequencies)`: `(entries,)` each. An n-gram's parent is the
        number (index + 1) of its first n - 1 words, or ROOT.
    """
    caption, start = np.nonzero(np.arange(ids.shape[1]) < lengths[:, None])
    parent = np.full(len(start), ROOT, "int64")
    total = int(documents.max(initial=0)) + 1
    found = []
    entries = 0
    for order in range(orders):
        # An n-gram cannot be in more documents than its first n - 1 words.
        alive = (start + order < lengths[caption]) & (parent != UNKNOWN)
        caption, start, parent = caption[alive], start[alive], parent[alive]
        words = ids[caption, start + order].astype("int64")
        pairs, index = np.unique((parent << 32) + words, return_inverse=True)
        occurs = distinct(index * total + documents[caption])
        frequency = np.bincount(occurs // total, minlength=len(pairs))
        kept = frequency > 1
        number = np.where(kept, entries + np.cumsum(kept), UNKNOWN)
        parent = number[index]
        words = ((pairs[kept] + 2**31) & 0xFFFFFFFF) - 2**31  # the low half, signed
        found.append(((pairs[kept] - words) >> 32, words, frequency[kept]))
        entries += int(kept.sum())
    parents, words, frequencies = map(np.concatenate, zip(*found, strict=True))
    return parents.astype("int32"), words.astype("int32"), frequencies


def distinct(values):
    """The distinct values of an array, sorted."""
    # NumPy's `unique` hashes, which takes many times as long for millions of values.
    values = np.sort(values)
    is_first = np.ones(len(values), "bool")
    is_first[1:] = values[1:] != values[:-1]
    return values[is_first]
