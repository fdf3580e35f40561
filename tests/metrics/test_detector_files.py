"""Files of detectors' weights: told, converted without a change of the digest, looked for."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from dnnlib.download import cached_path
from metrics import detector_files as module
from metrics import dinov2, lite0
from metrics import weights as inception
from metrics.detector_files import PUBLISHED, convert, fetch_published, identify, search_report
from tests.inception_weights import random_weights
from tests.metrics.test_dinov2 import random_weights as dinov2_weights
from tests.metrics.test_weights import home, write_stream, write_torchscript  # noqa: F401 (fixture)
from torch_utils.safetensors_file import load_tensors, save_tensors

SIZES = {'width': 64, 'depth': 1, 'grid': 4}
UNKNOWN = 'its sha256 is not that of a published file'


@pytest.fixture(scope='module')
def weights():
    return random_weights(1, gamma=False)


@pytest.fixture
def small_dinov2(monkeypatch):
    weights = dinov2_weights(**SIZES)
    shapes = dinov2.weight_shapes(**SIZES)
    monkeypatch.setattr(dinov2, 'weight_shapes', lambda: shapes)
    return weights


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_inception_file_through_every_conversion(tmp_path, weights):
    """TorchScript -> state dict -> safetensors -> state dict: one digest, and the same numbers."""
    digest, path = inception.digest(weights), tmp_path / 'inception.pt'
    write_torchscript(path, weights)
    found = identify(path)
    assert (found.path, found.kind, found.format,
            found.digest) == (path, 'inception', 'TorchScript', digest)
    assert (found.sha256, found.size, found.published) == (sha256(path), path.stat().st_size, None)
    assert found.notes == [UNKNOWN]
    for name, form in (('a.pth', 'state dict'), ('new/b.safetensors', 'safetensors'),
                       ('c.pth', 'state dict')):
        written = convert(path, tmp_path / name)
        path = tmp_path / name
        assert (written.path, written.kind, written.format,
                written.digest) == (path, 'inception', form, digest)
        assert written.sha256 == sha256(path) and written.notes == (
            [] if form == 'safetensors' else [UNKNOWN]
        )
    plain = torch.load(path, weights_only=True)
    assert type(plain) is dict and list(plain) == list(weights) and len(plain) == 472
    assert all(torch.equal(plain[name], weights[name]) for name in weights)
    tensors, texts = load_tensors(tmp_path / 'new/b.safetensors')
    assert list(tensors) == list(weights) and texts == {'detector': 'inception', 'digest': digest}
    assert inception.digest(inception.load_weights(path)) == digest


def test_a_published_file_is_known_by_its_checksum(tmp_path, weights, monkeypatch):
    path = tmp_path / 'renamed.pth'
    write_stream(path, weights)
    files = (PUBLISHED['inception'][0]._replace(sha256=sha256(path)), *PUBLISHED['inception'][1:])
    monkeypatch.setattr(module, 'PUBLISHED', {**PUBLISHED, 'inception': files})
    found = identify(path)
    assert (found.published, found.notes) == ('pt_inception-2015-12-05-6726825d.pth', [])
    assert (found.format, found.digest) == ('state dict', inception.digest(weights))


def test_gammas_are_counted(tmp_path):
    path, weights = tmp_path / 'a.safetensors', random_weights(1, gamma=False)
    for name in ('Conv2d_2a_3x3.bn.weight', 'Mixed_6d.branch1x1.bn.weight'):
        weights[name][3] = 0.9
    save_tensors(weights, {}, path)
    assert identify(path).notes == ['2 of its layers have a gamma other than 1: files that leave '
                                    'gamma out hold other weights']


def test_dinov2_files(tmp_path, small_dinov2, monkeypatch):
    path, digest = tmp_path / 'dinov2.pth', inception.digest(small_dinov2)
    torch.save(small_dinov2, path)
    found = identify(path)
    assert (found.kind, found.format, found.digest, found.published) == (
        'dinov2',
        'state dict',
        digest,
        None,
    )
    written = convert(path, tmp_path / 'a.safetensors')
    assert (written.kind, written.format, written.digest,
            written.notes) == ('dinov2', 'safetensors', digest, [])
    assert convert(tmp_path / 'a.safetensors', path).digest == digest
    # the published one is larger than any of Inception's
    monkeypatch.setattr(inception, 'MAX_FILE', 1000)
    assert identify(path).kind == 'dinov2'
    monkeypatch.setattr(module, 'PUBLISHED',
                        {**PUBLISHED, 'dinov2': (dinov2.PUBLISHED._replace(sha256=sha256(path)),)})
    assert identify(path).published == 'dinov2_vitl14_pretrain.pth'


def test_what_is_written_is_read_again(tmp_path, small_dinov2, monkeypatch):
    path, dest = tmp_path / 'a.pth', tmp_path / 'b.pth'
    torch.save(small_dinov2, path)
    good, digest = module.WRITERS['.pth'], inception.digest(small_dinov2)
    other = {**small_dinov2, 'norm.bias': small_dinov2['norm.bias'] + 1}
    monkeypatch.setitem(module.WRITERS, '.pth', lambda weights, kind, dest: good(other, kind, dest))
    with pytest.raises(ValueError) as error:
        convert(path, dest)
    assert str(error.value) == (f'{dest} has the digest {inception.digest(other)} after writing, '
                                f'not {digest} as {path}: do not use it, and check the disk')


class Executed:
    def __reduce__(self):
        return os.system, ('touch executed',)


def test_other_files_are_refused(tmp_path, small_dinov2, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, dest = tmp_path / 'a', tmp_path / 'b.pth'

    def message():
        with pytest.raises(ValueError) as error:
            convert(path, dest)
        assert '\n' not in str(error.value) and not dest.exists()
        return str(error.value)

    for content in (pickle.dumps(Executed()), pickle.dumps({'cls_token': Executed()})):
        path.write_bytes(content)
        assert message() == (f"{path} is not a file of Inception's weights of ours or of a kind "
                             f"known here: it refers to "
                             f'{os.system.__module__}.system; nothing in it was executed')
    torch.save({'cls_token': Executed()}, path)
    assert 'nothing in it was executed' in message() and not (tmp_path / 'executed').exists()
    path.write_bytes(b'')
    assert message() == f"{path} is not a file of Inception's weights: it is empty"
    torch.save({**small_dinov2, 'norm.bias': torch.zeros(3)}, path)
    assert (message() == f'{path} does not have the weights of DINOv2 ViT-L/14: the tensor '
                         f'norm.bias has shape [3], not [64]')
    save_tensors({'cls_token': torch.zeros(1, 1, 64)}, {}, path)
    assert (message() == f'{path} does not have the weights of dinov2: the tensor pos_embed is '
                         f'missing')
    save_tensors({'fc.bias': torch.zeros(3)}, {}, path)
    assert (message() == f'{path} does not have the weights of inception: the tensor '
                         f'Conv2d_1a_3x3.conv.weight is missing')
    with pytest.raises(FileNotFoundError, match='there is no such file'):
        identify(tmp_path / 'none')
    with pytest.raises(ValueError, match='is a folder, not a file'):
        identify(tmp_path)
    with pytest.raises(ValueError, match=r'^b\.onnx should end in \.pth or \.safetensors$'):
        convert(path, 'b.onnx')


def test_downloads_go_where_files_are_looked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(module, 'fetch', lambda url, sha256, **more: asked.append((url, sha256))
                        or cached_path(url))
    assert fetch_published('inception') == cached_path(inception.PUBLISHED[0].url) == next(
        inception.downloads())[0]
    assert fetch_published('dinov2') == cached_path(dinov2.PUBLISHED.url) == next(
        dinov2.downloads())[0]
    assert asked == [(inception.PUBLISHED[0].url, inception.PUBLISHED[0].sha256),
                     (dinov2.PUBLISHED.url, dinov2.PUBLISHED.sha256)]
    with pytest.raises(ValueError, match='^there are no published weights of demo, but of '
                                         'inception and dinov2$'):
        fetch_published('demo')


def test_places_that_are_looked_at(home, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lite0, 'installed', lambda: (Path(lite0.FILE), False, False))
    places = search_report()
    assert [place.path for place in places] == [
        *(cached_path(file.url) for file in inception.PUBLISHED),
        home / '.cache/torch/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth',
        home / '.cache/torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth',
        home / '.cache/k-diffusion/inception-2015-12-05.pt',
        cached_path(dinov2.PUBLISHED.url),
        home / '.cache/torch/hub/checkpoints/dinov2_vitl14_pretrain.pth',
        Path(lite0.FILE)]
    assert not any(exists or usable for _, exists, usable in places)
    for place in places[:4]:
        place.path.parent.mkdir(parents=True, exist_ok=True)
        place.path.write_bytes(b'weights')
    good = inception.PUBLISHED[0]._replace(sha256=hashlib.sha256(b'weights').hexdigest())
    monkeypatch.setattr(inception, 'PUBLISHED', (good, *inception.PUBLISHED[1:]))
    # the second has another checksum, of the third none is known
    assert [place[1:] for place in search_report()] == [
        (True, True), (True, False), (True, True), (True, True), *[(False, False)] * 5]
    monkeypatch.setenv('LIMPID_DINOV2', str(home / 'mine.pth'))
    assert search_report()[6] == (home / 'mine.pth', False, False)
    (home / 'mine.pth').write_bytes(b'')
    monkeypatch.setenv('LIMPID_DETECTOR', str(home / 'mine.pth'))
    assert search_report()[0] == search_report()[7] == (home / 'mine.pth', True, True)
