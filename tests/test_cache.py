"""The cache with room holds what transformers' own holds."""

import torch
from transformers import DynamicCache, LlamaConfig

from steermoe.decode.cache import ROOM, RoomyLayer, roomy_cache

CONFIG = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)


def test_the_same_as_transformers_cache_through_growth_and_choice_of_rows():
    draw = torch.Generator().manual_seed(0)
    ours, theirs = roomy_cache(CONFIG), DynamicCache(config=CONFIG)
    rows = 3
    for step in range(2 * ROOM + 10):
        states = torch.randn(2, rows, 2, 5 if step == 0 else 1, 4, generator=draw)
        for one, other in zip(ours.update(*states, 0), theirs.update(*states, 0)):
            assert torch.equal(one, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if chosen := {4: [2, 0], ROOM: [1, 1, 0]}.get(step):
            ours.reorder_cache(torch.tensor(chosen))
            theirs.reorder_cache(torch.tensor(chosen))
            rows = len(chosen)


def test_a_token_is_written_where_there_is_room():
    cache = roomy_cache(CONFIG)
    first = cache.update(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 4), 0)[0]
    second = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)[0]
    assert second.shape[-2] == 6 and second.data_ptr() == first.data_ptr()


def test_sliding_windows_keep_their_own_layers():
    from transformers import MistralConfig

    config = MistralConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, sliding_window=4)
    assert [type(layer) for layer in roomy_cache(config).layers] == [type(layer) for layer in DynamicCache(config=config).layers]
    assert all(type(layer) is RoomyLayer for layer in roomy_cache(CONFIG).layers)
