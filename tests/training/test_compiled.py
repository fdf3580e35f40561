"""Networks made faster answer what the plain network answers; bounds are stated where they act."""

import copy
import functools
from dataclasses import replace

import pytest
import torch

from benchmarks.plain import made_plain
from limpid.preconditioning import EDM
from limpid.sampling import sample
from tests.golden_weights import fill
from tests.training.test_networks import images, relative_error
from tests.training.test_training_loop import assert_same, digits, run_steps, small_config  # noqa: F401 (fixtures)
from training.compiled import (
    Graphed,
    Recorder,
    cast_weights,
    checkpoint_blocks,
    compile_blocks,
    hastened_for_sampling,
    prefers_channels_last,
    set_tf32,
)
from training.networks import (
    ARCHITECTURES,
    Conv2d,
    GroupNorm,
    NetworkConfig,
    UNetBlock,
    attention,
    build_network,
    group_norm_channels_last,
    is_channels_last,
)
from training.state import load_state, restore_state, save_state
from training.training_loop import build

SMALL = {'model_channels': 16, 'channel_mult': [1, 2], 'num_blocks': 1, 'attn_resolutions': [4],
         'dropout': 0.0}
GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason='needs an NVIDIA GPU')


def network(architecture='ddpmpp', precision='fp32', **changes):
    """A small network of an architecture, filled, in evaluation mode."""
    model_type, preset = ARCHITECTURES[architecture]
    config = NetworkConfig(model_type, EDM(), 0, float('inf'), 8, 3, 4, precision,
                           {**preset, **SMALL, **changes})
    return fill(build_network(config)).eval().requires_grad_(False)


X, SIGMA, LABELS = images(3, 3, 8, 8), torch.tensor([0.1, 1.0, 20.0]), torch.eye(4)[:3]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('shape', [(2, 16, 5, 5), (3, 64, 4, 4), (1, 128, 7, 3)])
@pytest.mark.parametrize('offset', [0.0, 3.0])
def test_group_norm_channels_last_is_group_norm(shape, offset):
    """Values and gradients against float64; mean²/variance up to 9 costs a factor of 10."""
    norm = fill(GroupNorm(shape[1]))
    x = images(*shape) + offset
    exact, fast = x.double().requires_grad_(), channels_last(x).requires_grad_()
    expected = copy.deepcopy(norm).double()(exact)
    actual = group_norm_channels_last(fast, norm.num_groups, norm.weight, norm.bias, norm.eps)
    assert is_channels_last(actual)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)
    upstream = images(*shape, seed=1)
    expected.backward(upstream.double())
    actual.backward(upstream)
    torch.testing.assert_close(fast.grad.double(), exact.grad, rtol=0, atol=2e-5)


@pytest.mark.parametrize('taps', [[1, 1], [2, 2]])
@pytest.mark.parametrize('way', ['up', 'down'])
@pytest.mark.parametrize('kernel, fused', [(0, False), (1, False), (3, False), (3, True)])
def test_the_box_filter_is_the_convolution_that_it_replaces(taps, way, kernel, fused):
    """¼ and 1 are exact in binary; only the order of four additions may differ."""
    conv = fill(Conv2d(6, 6, kernel, resample_filter=taps, fused_resample=fused, **{way: True}))
    x = images(2, 6, 8, 8)
    torch.testing.assert_close(conv(x), made_plain(torch.nn.Sequential(conv))[0](x), rtol=2e-6,
                               atol=2e-6)


def test_a_filter_of_unequal_taps_is_no_box():
    conv = Conv2d(3, 3, 0, down=True, resample_filter=[1, 3])
    x = images(1, 3, 4, 4)
    corner = (x[0, 0, :2, :2] * torch.tensor([[1, 3], [3, 9]]) / 16).sum()
    assert conv(x)[0, 0, 0, 0].item() == pytest.approx(corner.item(), rel=1e-5)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_plain_layers_compute_the_same_function(architecture):
    """SDPA and einsum, pooling and convolution: float32 rounding, as in the golden tests."""
    net = network(architecture)
    plain = made_plain(net)
    assert list(plain.state_dict()) == list(net.state_dict())
    assert relative_error(plain(X, SIGMA, LABELS), net(X, SIGMA, LABELS)) < 5e-6


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('channels', [1, 3])
def test_channels_last_from_end_to_end(architecture, channels):
    """No layer falls back to NCHW, and results and gradients are those of NCHW."""
    model_type, preset = ARCHITECTURES[architecture]
    config = NetworkConfig(model_type, EDM(), 0, float('inf'), 8, channels, 0, 'fp32',
                           {**preset, **SMALL})
    net = fill(build_network(config)).eval()
    fast = copy.deepcopy(net)
    fast.model.channels_last = True
    layouts = []
    for module in fast.modules():
        if isinstance(module, UNetBlock):
            module.register_forward_hook(lambda _, __, out: layouts.append(is_channels_last(out)))
    x = images(3, channels, 8, 8)
    expected, actual = net(x, SIGMA), fast(x, SIGMA)
    assert layouts and all(layouts)
    assert relative_error(actual, expected) < 5e-6
    expected.square().sum().backward()
    actual.square().sum().backward()
    for (name, parameter), other in zip(net.named_parameters(), fast.parameters(), strict=True):
        assert relative_error(other.grad, parameter.grad) < 5e-5, name
        assert other.is_contiguous() and other.grad.is_contiguous(), name


@pytest.mark.parametrize('architecture, layout', [('ddpmpp', True), ('ncsnpp', False)])
def test_compiled_blocks_are_whole_graphs_of_the_same_function(architecture, layout):
    """With aot_eager: all that a compiler does but for the code it writes; nothing is left out of
    the graphs (fullgraph), and operations that are taken apart round otherwise."""
    net = network(architecture)
    fast = copy.deepcopy(net)
    fast.model.channels_last = layout
    compile_blocks(fast.model, backend='aot_eager')
    assert list(fast.state_dict()) == list(net.state_dict())
    assert relative_error(fast(X, SIGMA, LABELS), net(X, SIGMA, LABELS)) < 5e-6
    # copies of it, as averages and snapshots are, are not compiled
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(fast).modules())


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_weights_cast_once_give_the_same_bits_in_half_precision(architecture):
    net = network(architecture, 'bf16')
    fast = hastened_for_sampling(net, compiled=False)
    same_layout = copy.deepcopy(net)
    same_layout.model.channels_last = fast.model.channels_last
    answer = fast(X, SIGMA, LABELS)
    assert torch.equal(answer, same_layout(X, SIGMA, LABELS))
    # some ten layers, each of which rounds to 8 bits
    assert relative_error(answer, net(X, SIGMA, LABELS, force_fp32=True)) < 2e-2
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    convolutions = [m for m in fast.model.modules() if isinstance(m, Conv2d)]
    assert {m.weight.dtype for m in convolutions if m.weight is not None} == {torch.bfloat16}
    exact = network(architecture)(X, SIGMA, LABELS)   # 8 bits, through some 20 layers
    assert relative_error(fast(X, SIGMA, LABELS), exact) < 5e-2


def test_float32_is_left_alone_by_casting():
    net = network()
    fast = copy.deepcopy(net)
    cast_weights(fast)
    assert torch.equal(fast(X, SIGMA, LABELS), net(X, SIGMA, LABELS))


def test_only_matrix_units_want_channels_last(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    for half in (torch.bfloat16, torch.float16):
        assert prefers_channels_last(half, gpu, compiled=True)
        assert not prefers_channels_last(half, gpu, compiled=False)
        assert prefers_channels_last(half, cpu, compiled=False)
        assert not prefers_channels_last(half, cpu, compiled=True)
    assert not prefers_channels_last(torch.float32, cpu, compiled=False)
    assert not prefers_channels_last(torch.float32, gpu, compiled=True)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    assert prefers_channels_last(torch.float32, gpu, compiled=True)


def test_a_compiled_step_is_the_step(digits, monkeypatch):  # noqa: F811
    """With the backend that runs the same operations: the same bits, names and averages."""
    monkeypatch.setattr('training.compiled.compile_blocks',
                        functools.partial(compile_blocks, backend='eager'))
    config = small_config(digits, dropout=0.1)
    plain = run_steps(config, 2)
    fast = run_steps(replace(config, compile=True, batch_gpu=16), 2)
    assert_same(plain.net.state_dict(), fast.net.state_dict())
    assert_same(plain.ema.net.state_dict(), fast.ema.net.state_dict())


def test_an_optimizer_continues_as_its_device_works(digits, tmp_path):  # noqa: F811
    """A state that was saved where Adam was not fused goes on where it is, and keeps its
    numbers."""
    config = small_config(digits)
    state = run_steps(config, 2)
    expected = run_steps(config, 1, copy.deepcopy(state))
    for group in state.optimizer.param_groups:
        group['fused'] = False
    path = save_state(state, config, tmp_path)
    restored = build(config, torch.device('cpu'))
    restore_state(restored, load_state(path), str(path))
    assert restored.optimizer.param_groups[0]['fused'] is True
    assert_same(run_steps(config, 1, restored).net.state_dict(), expected.net.state_dict())


def test_attention_that_is_trained_in_half_precision_on_a_cpu_rounds_inputs_and_answer_only():
    """Its products are those of float32: one rounding to 8 bits away from them."""
    qkv = images(2, 24, 4, 4).to(torch.bfloat16)
    exact = attention(qkv.to(torch.float32), num_heads=2)
    trained = attention(qkv.requires_grad_(), num_heads=2)
    assert trained.dtype == torch.bfloat16
    assert torch.equal(trained, exact.to(torch.bfloat16))
    trained.sum().backward()
    assert qkv.grad.dtype == torch.bfloat16


@needs_gpu
@pytest.mark.parametrize('precision, bound', [('fp32', 2e-6), ('bf16', 2e-2), ('fp16', 3e-3)])
def test_on_a_gpu_compiled_and_recorded_networks_draw_the_same_images(precision, bound):
    """Relative to float32 on the same GPU: some 10 rounding errors of 24, 8 and 11 bits."""
    set_tf32(False)
    exact, net = network().cuda(), network(precision=precision).cuda()
    noise, labels = X.cuda(), LABELS.cuda()
    expected = sample(exact, noise, labels, num_steps=4)
    for compiled in (False, True):
        fast = hastened_for_sampling(net, compiled)
        assert relative_error(sample(fast, noise, labels, num_steps=4), expected) < bound


@needs_gpu
def test_a_recording_gives_the_bits_of_the_network_without_waiting():
    net = network(precision='bf16').cuda()
    noise, labels = X.cuda(), LABELS.cuda()
    expected = sample(net, noise, labels, num_steps=4)
    graphed = Graphed(net)
    sample(graphed, noise, labels, num_steps=4)   # recorded here
    torch.cuda.set_sync_debug_mode('error')
    try:
        assert sample(graphed, noise, labels, num_steps=4) is not None
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.equal(sample(graphed, noise, labels, num_steps=4), expected)
    assert torch.equal(sample(graphed, noise[:1], labels[:1], num_steps=4),
                       sample(net, noise[:1], labels[:1], num_steps=4))


@needs_gpu
def test_a_recorder_tells_shapes_and_values_apart():
    recorder = Recorder(lambda x, factor: x * factor)
    for x, factor in [(torch.ones(2), 3), (torch.ones(3), 3), (torch.ones(2), 4)]:
        given = {'x': x.cuda(), 'factor': factor}
        assert given not in recorder
        recorder.record(given)
        assert recorder.replay({**given, 'x': 5 * x.cuda()}).tolist() == [5.0 * factor] * len(x)


def gradients_of(net, labels=LABELS):
    """The gradients of a loss, with the masks of dropout drawn from a fixed seed."""
    torch.manual_seed(5)
    net.requires_grad_(True).zero_grad()
    net(X, SIGMA, labels).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_checkpointing_leaves_the_bits_of_gradients(architecture, precision):
    """With dropout, whose masks come from the same state; fewer numbers are kept meanwhile."""
    net = network(architecture, precision, dropout=0.3).train()
    fast = copy.deepcopy(net)
    checkpoint_blocks(fast)
    kept = {}
    found = {}
    for name, model in (('plain', net), ('checkpointing', fast)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x):
            found[name] = gradients_of(model)
        kept[name] = sum(sizes)
    assert_same(found['plain'], found['checkpointing'])
    assert kept['checkpointing'] < 0.5 * kept['plain']
    with torch.no_grad():
        assert torch.equal(fast.eval()(X, SIGMA, LABELS), net.eval()(X, SIGMA, LABELS))


def test_checkpointing_of_compiled_blocks():
    net = network(dropout=0.0).train()
    fast = copy.deepcopy(net)
    compile_blocks(fast.model, backend='aot_eager')
    checkpoint_blocks(fast)
    for (name, actual), expected in zip(gradients_of(fast).items(), gradients_of(net).values(),
                                        strict=True):
        assert relative_error(actual, expected) < 5e-5, name


def test_a_step_with_checkpointing_is_the_step(digits):  # noqa: F811
    config = small_config(digits, dropout=0.2, batch_gpu=8)
    plain = run_steps(config, 2)
    fast = run_steps(replace(config, checkpointing=True), 2)
    assert_same(plain.net.state_dict(), fast.net.state_dict())
    assert not any(block.checkpointing for block in fast.ema.net.modules()
                   if isinstance(block, UNetBlock))
