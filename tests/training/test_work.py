"""The arithmetic of training: what is counted, and what becomes of it."""

import pytest
import torch

from limpid.preconditioning import EDM
from training.networks import NetworkConfig
from training.work import Work, matrix_rate, operations

C, E, R = 8, 32, 4   # channels of the features and of the embedding, and the resolution


def test_operations_of_a_network_by_hand():
    """Two for each weight of a convolution and pixel, and for each weight of a linear layer."""
    network = NetworkConfig('SongUNet', EDM(), 0, float('inf'), R, 3, 0, model={
        'model_channels': C, 'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})

    def block(channels, skip, attention=False):   # of `channels` to C
        pixels = 9 * channels * C + 9 * C * C + (channels * C if skip else 0)
        if attention:   # q, k, v and the projection, then products of pixels with pixels
            pixels += 3 * C * C + C * C + 2 * R * R * C
        return R * R * pixels + E * C

    expected = (R * R * 9 * (3 * C + C * 3)      # into the network and out of it
                + C * E + E * E                   # the embedding
                + block(C, False)                 # on the way down
                + block(C, False, attention=True) + block(C, False)
                + 2 * block(2 * C, True))         # on the way up, with skips
    assert operations(network) == 2 * expected


def test_numbers_of_a_pace():
    assert Work(per_image=3e9, rate=6e12).numbers(1000) == {
        'Timing/tflops': 3.0, 'Timing/utilisation': 0.5}


@pytest.mark.parametrize('precision', ['fp32', 'fp16', 'bf16'])
def test_measuring_leaves_the_generator_alone(precision):
    before = torch.get_rng_state()
    assert matrix_rate(torch.device('cpu'), precision) > 0
    assert torch.equal(torch.get_rng_state(), before)
