"""The wheel: one package, which needs torch and numpy alone and is not mistaken for a checkout."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What an environment with torch and numpy alone has not. (torch itself may ask for some of them.)
ABSENT = ('click', 'PIL', 'scipy', 'tqdm', 'psutil', 'sklearn', 'matplotlib', 'diffusers')
ISOLATED = f'''
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Absent())
'''


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A folder into which the wheel of this checkout was unpacked."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'limpid'):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
                    '--no-build-isolation', '--disable-pip-version-check', '--wheel-dir',
                    str(folder), str(source)], check=True, timeout=300)
    wheel, = folder.glob('limpid_diffusion-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / 'site')
    return folder / 'site'


def python(site, folder, code):
    """Run code as somebody does who has installed the wheel and works in `folder`."""
    program = f'{ISOLATED}\nsys.path.insert(1, {str(site)!r})\n{code}'
    return subprocess.run([sys.executable, '-c', program], cwd=folder, capture_output=True,
                          text=True, timeout=300)


def test_the_wheel_holds_one_package(site):
    assert {path.name for path in site.iterdir() if path.is_dir()
            and not path.name.endswith('.dist-info')} == {'limpid'}
    assert (site / 'limpid' / 'py.typed').is_file()
    metadata, = site.glob('*.dist-info/METADATA')
    needed = re.findall(r'^Requires-Dist: ([\w-]+)[^;\n]*$', metadata.read_text(), re.MULTILINE)
    assert sorted(needed) == ['numpy', 'torch']


@pytest.mark.parametrize('inside_another_checkout', [False, True])
def test_the_installed_library_runs_the_readme(site, tmp_path, inside_another_checkout):
    """In any folder, also in one that has packages of the names that checkouts of EDM have."""
    if inside_another_checkout:
        for name in ('training', 'torch_utils', 'dnnlib', 'metrics'):
            (tmp_path / name).mkdir()
            (tmp_path / name / '__init__.py').write_text(f'raise ImportError("not our {name}")\n')
    blocks = re.findall(r'^```python\n(.*?)^```$', (ROOT / 'README.md').read_text(),
                        re.MULTILINE | re.DOTALL)
    assert blocks
    result = python(site, tmp_path, '\n'.join([*blocks, 'import limpid', 'print(limpid.__file__)',
                                               'print(images.isfinite().all().item())']))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [str(site / 'limpid' / '__init__.py'), 'True']


def test_every_name_behind_the_door_is_there(site, tmp_path):
    result = python(site, tmp_path, 'import limpid\n'
                                    'print([n for n in limpid.__all__ if not hasattr(limpid, n)])\n'
                                    'print(sorted(m for m in sys.modules if m in '
                                    '("training", "torch_utils", "dnnlib", "metrics")))')
    assert result.stdout == '[]\n[]\n', result.stderr
