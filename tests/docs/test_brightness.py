"""The brightness experiment, without its training: its data, its numbers, what it asks the commands
for, its picture."""

import json
import math
import shlex

import click
import click.testing
import numpy as np
import pytest

import train
from data.convert import convert
from data.sources import open_source
from docs import brightness as experiment
from docs.brightness import CORRECTED, FLAWED, SETTINGS, Kept, Numbers
from options.sampler import resolve_sampler, sampler_options
from torch_utils.grids import save_png


def test_the_data_are_evenly_bright_and_nothing_is_clipped(tmp_path):
    pytest.importorskip('sklearn')
    convert(open_source('digits'), str(tmp_path / 'digits.zip'), resolution=(24, 24), color='rgb')
    digits = experiment.read(tmp_path / 'digits.zip')
    images = experiment.shifted(digits)
    assert images.shape == digits.shape == (1797, 3, 24, 24) and images.dtype == np.uint8
    # Rounding to 8 bits moves a pixel by at most 1/255 and the mean by less.
    levels = np.sort(experiment.brightness(images))
    expected = experiment.BRIGHTNESS * ((2 * np.arange(1797) + 1) / 1797 - 1)
    assert np.abs(levels - expected).max() < 1 / 255
    assert images.min() > 0 and images.max() < 255
    # They are the digits: per image, y' − mean = CONTRAST (y − mean).
    y, shifted = (x / 127.5 - 1 for x in (digits, images))
    y, shifted = (x - x.mean(axis=(1, 2, 3), keepdims=True) for x in (y, shifted))
    assert np.abs(shifted - experiment.CONTRAST * y).max() < 2 / 255
    # Brightness says nothing of the digit, nor of its place in the data set.
    assert abs(np.corrcoef(experiment.brightness(images), np.arange(1797))[0, 1]) < 0.05
    assert np.array_equal(images, experiment.shifted(digits))


def test_brightness_of_black_white_and_grey():
    images = np.stack([np.full([3, 2, 2], grey, dtype=np.uint8) for grey in (0, 51, 255)])
    assert np.allclose(experiment.brightness(images), [-1, -0.6, 1], rtol=0, atol=1e-15)


def test_numbers_of_half_the_range():
    data = np.linspace(-1, 1, 10001)
    same, half = Numbers.of(data, data), Numbers.of(data / 2, data)
    assert np.allclose(same.quantiles, [-0.98, -0.9, 0, 0.9, 0.98], rtol=0, atol=1e-12)
    assert (same.covered, same.distance) == (1, 0)
    assert np.allclose([same.darker, same.brighter], 0.1, rtol=0, atol=1e-3)
    assert np.allclose(half.quantiles, [-0.49, -0.45, 0, 0.45, 0.49], rtol=0, atol=1e-12)
    assert math.isclose(half.covered, 0.5, rel_tol=1e-12)
    assert (half.darker, half.brighter) == (0, 0)
    assert math.isclose(half.distance, 0.25, rel_tol=1e-3)   # ∫ |x − x/2| over U(−1, 1)


def test_numbers_of_other_ranges():
    data = np.linspace(-1, 1, 10001)
    above = Numbers.of(data + 0.98, data)   # from 0.0 to 1.96 of [−0.98, 0.98]
    assert math.isclose(above.covered, 0.5, rel_tol=1e-12)
    assert math.isclose(above.distance, 0.98, rel_tol=1e-9)
    assert math.isclose(above.brighter, 0.59, abs_tol=1e-3) and above.darker == 0
    assert Numbers.of(2 * data, data).covered == 1
    assert Numbers.of(data + 3, data).covered == 0


def covering(share):
    return Numbers((-share, 0, 0, 0, share), share, 0, 0, 0)


@pytest.mark.parametrize('flawed, corrected, problem', [
    (0.6, 0.95, ''),
    (0.6, 0.9, ''),
    (0.6, 0.85, 'the corrected model covers 85.0% of the range of brightness, less than 90%'),
    (0.93, 0.95, 'the flawed model covers 93.0% of the range of brightness, not less than 90%'),
])
def test_what_is_asked(flawed, corrected, problem):
    assert experiment.complaint(covering(flawed), covering(corrected)) == problem


def test_where_the_samplers_start():
    """First noise levels, as generate.py resolves the options: 1/√SNR of timestep 961 or 1000, ∞ at
    zero SNR."""
    @click.command()
    @sampler_options
    def parse(**options):
        return options

    starts = []
    for setting in SETTINGS:
        options = parse.main(shlex.split(setting.options), standalone_mode=False)
        sampling = resolve_sampler(options)
        assert sampling.notes == () and sampling.num_steps == experiment.STEPS
        starts.append(float(sampling.steps.sigmas(sampling.num_steps)[0]))
        a = setting.signal
        assert math.isclose(starts[-1], math.sqrt(1 - a**2) / a,
                            rel_tol=1e-9) if a else starts[-1] == math.inf
    assert [s.signal == 0 for s in SETTINGS] == [False, False, False, True, False, True]
    assert math.isclose(SETTINGS[1].signal, 0.0682649, rel_tol=1e-5)   # Table 1 of Lin et al.: √ᾱ_T
    assert FLAWED.signal > SETTINGS[1].signal > SETTINGS[2].signal > CORRECTED.signal == 0


def test_the_networks_differ_in_the_schedule_alone(tmp_path, monkeypatch):
    """What would be trained: the same configuration but for zero_terminal_snr, with a range up to
    √(1/SNR) or ∞."""
    for i in range(2):
        save_png(np.full([24, 24, 3], 100 * i, dtype=np.uint8), tmp_path / 'data' / f'{i:06d}.png')
    lines = []
    monkeypatch.setattr(Kept, 'command', lambda self, line: lines.append(line))
    Kept(tmp_path).train('cpu')
    configs = []
    for line in lines:
        program, *arguments = shlex.split(line)
        result = click.testing.CliRunner().invoke(train.main, [*arguments, '--dry-run'])
        assert (program, result.exit_code) == ('train.py', 0), result.output
        configs.append(result.output[result.output.index('{'):result.output.rindex('}') + 1])
    flawed, corrected = (text.splitlines() for text in configs)
    changed = [(a.strip(' ,'), b.strip(' ,')) for a, b in zip(flawed, corrected, strict=True)
               if a != b]
    assert {(a, b) for a, b in changed if 'sigma_max' not in a} == {('"zero_terminal_snr": false',
                                                                     '"zero_terminal_snr": true')}
    assert [json.loads(f'{{{a}}}')['sigma_max'] for a, b in changed
            if 'sigma_max' in a] == pytest.approx([14.6147], rel=1e-5)


def images_of(levels):
    pixels = np.rint((np.asarray(levels) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(pixels[:, None, None, None], [len(pixels), 3, 4, 4])


def test_the_strip_is_sorted():
    """Of 160 images in any order, 16 from the third darkest to the third brightest."""
    levels = np.linspace(-1, 1, 160)
    strip = experiment.strip(images_of(np.random.RandomState(0).permutation(levels)))
    assert strip.shape == (6, 16 * 5 + 1, 3)
    expected = np.rint((levels[[2, 12, 22, 33, 43, 54, 64, 74, 85, 95, 105, 116, 126, 137, 147,
                                157]] + 1) * 127.5)
    assert np.array_equal(strip[2, 2::5, 0], expected)
    assert (strip[[0, -1]] == experiment.GREY).all() and (strip[:, ::5] == experiment.GREY).all()


def test_the_picture_is_the_same_to_the_byte(tmp_path):
    pytest.importorskip('matplotlib')
    levels = np.linspace(-0.7, 0.7, 64)
    made = {'data': images_of(levels), 'flawed': images_of(levels / 2),
            'corrected': images_of(levels)}
    files = []
    for i in range(2):
        experiment.draw_picture(made, str(tmp_path / f'{i}.png'))
        files.append((tmp_path / f'{i}.png').read_bytes())
    assert files[0] == files[1] and files[0][:4] == b'\x89PNG' and b'Software' not in files[0]
    experiment.draw_picture({**made, 'flawed': images_of(levels / 3)}, str(tmp_path / 'other.png'))
    assert (tmp_path / 'other.png').read_bytes() != files[0]


def test_the_report_has_every_number():
    data = np.linspace(-0.7, 0.7, 1001)
    numbers = {setting: Numbers.of(data * (i + 1) / 8, data) for i, setting in enumerate(SETTINGS)}
    text = experiment.report(Numbers.of(data, data), numbers, 1797, (3, 24, 24),
                             {'train.py --x': 90.0, 'generate.py --y': 30.0}, '2 CPU threads',
                             'b.png')
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip('|').split('|')]
                                        for line in text.splitlines() if line.startswith('|'))}
    assert rows['data'] == ['', '-0.69', '-0.63', '0.00', '0.63', '0.69', '100.0%', '10.0%',
                            '10.0%', '0.000']
    assert rows['**flawed**: trained, flawed schedule, leading'] == [
        # W₁ = ⅞ mean |m|
        f'{FLAWED.signal:.4f}', '-0.09', '-0.08', '0.00', '0.08', '0.09', '12.5%', '0.0%', '0.0%',
        '0.307']
    assert rows['**corrected**: trained, corrected schedule, trailing'][:2] == ['0.0000', '-0.34']
    assert len(rows) == 3 + len(SETTINGS)  # with the head and the line under it
    assert (
        'took 2 minutes on 2 CPU threads' in text
        and 'python train.py --x\npython generate.py --y\n' in text
        and '](b.png)' in text
    )
    assert f'{1 / math.sqrt(1728):.4f}' in text


def test_commands_run_once(tmp_path, monkeypatch, capsys):
    ran = []

    class Result:
        returncode = 0

    monkeypatch.setattr(experiment.subprocess, 'run', lambda arguments, check: ran.append(arguments)
                        or Result)
    for _ in range(2):
        Kept(tmp_path).command('train.py --run=x --batch=32')
    assert [arguments[2:] for arguments in ran] == [['--run=x', '--batch=32']]
    assert capsys.readouterr().out == '\n$ python train.py --run=x --batch=32\n'
    Result.returncode = 75
    with pytest.raises(SystemExit) as stopped:
        Kept(tmp_path).command('train.py --run=y')
    assert stopped.value.code == 75 and list(
        json.loads((tmp_path / 'seconds.json').read_text())
    ) == ['train.py --run=x --batch=32']
    (tmp_path / 'seconds.json').write_text('[]')
    with pytest.raises(ValueError, match='seconds.json is damaged: delete .* to start anew'):
        Kept(tmp_path)
