"""Length-bucketed batches."""

import numpy as np
from hypothesis import given, strategies

from steermoe.data.sampler import epoch_batches, sorted_batches

LENGTHS = strategies.lists(strategies.integers(1, 3000), min_size=1, max_size=60)


@given(LENGTHS, strategies.integers(0, 5))
def test_every_utterance_once_within_the_budget(lengths, epoch):
    for batches in (sorted_batches(lengths, 4000, 8), epoch_batches(lengths, 4000, 8, 1, epoch)):
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            assert 1 <= len(batch) <= 8
            assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= 4000


def test_the_seed_and_the_epoch_decide():
    lengths = list(range(100, 400))
    first = epoch_batches(lengths, 4000, 8, 1, 0)
    assert first == epoch_batches(lengths, 4000, 8, 1, 0)
    assert first != epoch_batches(lengths, 4000, 8, 1, 1) != epoch_batches(lengths, 4000, 8, 2, 1)


def test_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 3000, 2000).tolist()
    batches = epoch_batches(lengths, 48000, 64, 1, 0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert sum(lengths) / padded > 0.9


def test_decoding_begins_with_the_longest():
    assert sorted_batches([5, 900, 7, 30], 1000, 2) == [[1], [3], [0, 2]]

