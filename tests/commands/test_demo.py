"""demo.py --data=fashion: what it runs, and what it says where Fashion-MNIST is not installed."""

import shlex
import struct

import numpy as np
from click.testing import CliRunner

import dataset_tool
import demo
import generate
import train


def test_where_fashion_mnist_is_missing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, 'FASHION', tmp_path / 'train-images-idx3-ubyte.gz')
    result = CliRunner().invoke(demo.main, ['--data=fashion'])
    assert result.exit_code == 1
    assert result.output.startswith(f'Error: {tmp_path}/train-images-idx3-ubyte.gz is missing: '
                                    'install Fashion-MNIST with apt install dataset-fashion-mnist')
    assert list(tmp_path.iterdir()) == []


def test_the_commands_on_fashion_mnist(monkeypatch, tmp_path):
    """The conversion runs on three images, and train.py takes the line."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'train-images-idx3-ubyte'
    file.write_bytes(bytes([0, 0, 8, 3]) + struct.pack('>3I', 3, 28, 28) + bytes(3 * 28 * 28))
    (tmp_path / 'train-labels-idx1-ubyte').write_bytes(
        bytes([0, 0, 8, 1]) + struct.pack('>I', 3) + np.uint8([0, 9, 1]).tobytes())
    monkeypatch.setattr(demo, 'FASHION', file)
    lines = []

    def command(line):
        program, *words = shlex.split(line)
        lines.append(program)
        main = {'dataset_tool.py': dataset_tool.main, 'train.py': train.main}.get(program)
        if main is None:
            assert generate.main.make_context('generate', words).params['grid'] == (10, 10)
            return
        result = CliRunner().invoke(main, [*words, *(['--dry-run'] if main is train.main else [])])
        assert result.exit_code == 0, result.output

    monkeypatch.setattr(demo, 'command', command)
    result = CliRunner().invoke(demo.main, ['--data=fashion', '--device=cpu'])
    assert result.exit_code == 0, result.output
    assert lines == ['dataset_tool.py', 'train.py', 'generate.py']
