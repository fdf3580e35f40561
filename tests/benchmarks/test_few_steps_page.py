"""The page of few steps: what it says of numbers, and the command end to end on small images."""

import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import few_steps_page
from benchmarks.few_steps import BUDGETS, TABLE
from limpid.ideal import IdealDenoiser
from tests.commands.test_fid import smooth_images, write


def test_kendalls_tau():
    assert few_steps_page.kendall([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert few_steps_page.kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert few_steps_page.kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


def test_the_statements_hold_of_the_published_numbers():
    """Those that are said of the published table are true of it."""
    for statement in few_steps_page.STATEMENTS:
        assert statement.holds(few_steps_page.PUBLISHED), statement.text
    reversed_order = {nfe: {name: -value for name, value in line.items()}
                      for nfe, line in few_steps_page.PUBLISHED.items()}
    assert sum(statement.holds(reversed_order) for statement in few_steps_page.STATEMENTS) <= 1


def cells(scale):
    """Numbers in the published order."""
    found = {'exact': {'rms': 0.0, 'distance': 1.0}}
    for name in few_steps_page.NAMES:
        fid = next((row.fid for row in TABLE if row.name == name), dict.fromkeys(BUDGETS, 500.0))
        for nfe in BUDGETS:
            found[f'{name} {nfe}'] = {'rms': scale * fid[nfe], 'distance': fid[nfe]
                                      } if nfe in fid else {}
    return found


def test_what_is_said_of_numbers():
    measured = {'A': cells(0.01)}
    assert few_steps_page.agreement(measured).splitlines()[2] == (
        '| A, rms | ' + ' | '.join(['1.00'] * 8) + ' |')
    assert few_steps_page.statements(measured).count(' yes | yes |') == len(
        few_steps_page.STATEMENTS)
    lines = few_steps_page.numbers(measured['A'], 'rms').splitlines()
    assert lines[2].startswith('| Euler | 0.934 | 0.668 |')
    assert lines[3].startswith('| Heun | – | 3.20 | – |')
    assert '**0.48**' in lines[8]   # iPNDM-4 at NFE 3


def test_the_command_measures_once_and_writes_the_page(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(few_steps_page, 'BUDGETS', (4, 6))
    monkeypatch.setattr(few_steps_page, 'PUBLISHED', {nfe: few_steps_page.PUBLISHED[nfe]
                                                      for nfe in (4, 6)})
    monkeypatch.setattr(few_steps_page, 'STATEMENTS', ())
    monkeypatch.setattr(few_steps_page, 'EXACT', few_steps_page.EXACT | {'num_steps': 24})
    data = write(tmp_path / 'data.zip', smooth_images(12, size=8))
    opened = []

    def network(path, device):
        opened.append(path)
        return IdealDenoiser(torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8))

    monkeypatch.setattr(few_steps_page, 'open_network', network)
    (tmp_path / 'net.pkl').write_bytes(b'x')
    arguments = [f'--data={data}', '--real=6', f'--network={tmp_path}/net.pkl', '--images=4',
                 f'--trained-on={data}', f'--results={tmp_path}/r.json', f'--dest={tmp_path}/out']
    result = CliRunner().invoke(few_steps_page.main, arguments)
    assert result.exit_code == 0, result.output
    ideal, trained = json.loads((tmp_path / 'r.json').read_text()).values()
    assert ideal.keys() == trained.keys() and len(ideal) == 1 + 11 * 2
    assert ideal['exact']['rms'] == 0 < ideal['Euler 4']['rms']
    assert ideal['Euler, searched 6']['rms'] != ideal['Euler 6']['rms']
    page = (tmp_path / 'out' / 'few-steps.md').read_bytes()
    assert b'It knows 6 images of `data.zip`, in 8x8.' in page
    again = CliRunner().invoke(few_steps_page.main, arguments)
    assert again.exit_code == 0 and len(opened) == 1   # nothing is measured again
    assert page == (tmp_path / 'out' / 'few-steps.md').read_bytes()
