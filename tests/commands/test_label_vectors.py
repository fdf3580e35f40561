"""From a data set whose labels are vectors to images of these vectors, and of no others."""

import json

import numpy as np
import PIL.Image
import torch

import fid
import generate
import train
from limpid.pixels import to_uint8
from limpid.sampling import plan
from limpid.seeds import StackedGenerator, latents_and_labels
from tests.commands.test_generate import run
from training.state import load_snapshot

VECTORS = [(float(i % 2), 1 - i / 4) for i in range(8)]


def test_a_network_is_trained_on_vectors_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.setattr('training.pictures.GRID', 2)
    data = tmp_path / 'data'
    data.mkdir()
    for i in range(8):
        PIL.Image.new('L', (8, 8), 30 * i).save(data / f'{i}.png')
    labels = [[f'{i}.png', vector] for i, vector in enumerate(VECTORS)]
    (data / 'dataset.json').write_text(json.dumps({'labels': labels}))
    trained = run(train.main, f'--run-dir={tmp_path / "run"}', f'--data={data}', '--cond=1',
                  '--cbase=8', '--cres=1', '--blocks=1', '--batch=4', '--dropout=0',
                  '--duration=0.000008', '--tick=0.004', '--workers=0', '--device=cpu')
    assert trained.exit_code == 0, trained.output
    assert 'label vectors of 2 numbers' in trained.output
    network = tmp_path / 'run' / 'network-snapshot-000000.pkl'
    net, _ = load_snapshot(network)
    assert net.label_dim == 2 and sorted(net.known_labels.vectors) == sorted(VECTORS)
    seeds = list(range(16))
    noise, drawn = latents_and_labels(net, seeds, None, StackedGenerator(seeds, 'cpu'))
    assert {*map(tuple, drawn.tolist())} <= {*VECTORS}
    with torch.no_grad():
        expected = to_uint8(plan(net, num_steps=2)(net, noise, drawn))

    made = run(generate.main, f'--network={network}', f'--outdir={tmp_path}', '--seeds=0-15',
               '--steps=2', '--device=cpu')
    assert made.exit_code == 0, made.output
    for seed in seeds:
        image = np.asarray(PIL.Image.open(tmp_path / f'{seed:06d}.png'))
        assert np.array_equal(image, expected[seed, 0].numpy())
    judged = run(fid.main, 'gen', f'--network={network}', f'--ref={data}', '--num=4', '--steps=2',
                 '--detector=demo', '--device=cpu')
    assert judged.exit_code == 0, judged.output
    for draw in ('even', 'balanced'):
        swept = run(fid.main, 'sweep', f'--network={network}', f'--ref={data}', '--num=4',
                    '--steps=2', '--detector=demo', '--device=cpu', f'--draw-labels={draw}',
                    f'--dest={tmp_path / "sweep"}')
        assert swept.exit_code == 0, swept.output
    assert 'measured before: 0' in swept.output   # other labels are other images
