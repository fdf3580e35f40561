"""The Python in README.md and docs/*.md: it runs, and prints what the comments beside it say."""

import contextlib
import io
import re
import traceback
from pathlib import Path

import pytest
import torch

import limpid

ROOT = Path(__file__).parents[2]
PAGES = ['README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))]
PRINTED = re.compile(r'^ *print\(.*\) +# (.+)$', re.MULTILINE)


def blocks(text):
    """(line of the opening fence, code) of each ```python block, in order."""
    for match in re.finditer(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        yield text.count('\n', 0, match.start()) + 1, match[1]


def run_page(name, text):
    """Run the blocks of a page in order, in one fresh namespace, and return it.

    Fails with the line of the page: where an exception came from, or where a block begins that
    printed something else than its comments say.
    """
    namespace = {'__name__': name}
    for line, code in blocks(text):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile('\n' * line + code, name, 'exec'), namespace)
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                     if frame.filename == name]
            where = getattr(error, 'lineno', None) if isinstance(error, SyntaxError) else lines[0]
            pytest.fail(f'{name}:{where}: {type(error).__name__}: {error}')
        if printed.getvalue().splitlines() != [said.strip() for said in PRINTED.findall(code)]:
            pytest.fail(f'{name}:{line}: this block prints\n{printed.getvalue()}')
    return namespace


def test_the_pages_with_python_are_known():
    with_python = [name for name in PAGES if list(blocks((ROOT / name).read_text()))]
    assert with_python == ['README.md', 'docs/judging.md', 'docs/library.md', 'docs/tutorial.md']


def test_the_readme_runs():
    namespace = run_page('README.md', (ROOT / 'README.md').read_text())
    images = namespace['images']
    assert images.shape == namespace['noise'].shape and bool(images.isfinite().all())


def test_the_library_page_runs():
    torch.manual_seed(0)
    namespace = run_page('docs/library.md', (ROOT / 'docs' / 'library.md').read_text())
    assert bool(namespace['images'].isfinite().all())


def test_the_detector_of_the_page_on_judging_runs():
    net = run_page('docs/judging.md', (ROOT / 'docs' / 'judging.md').read_text())['net']()
    assert net(torch.zeros([2, 3, 9, 9], dtype=torch.uint8)).shape == (2, 64)


def test_the_library_page_shows_the_whole_door():
    """Its last table holds every public name, and no other."""
    table = (ROOT / 'docs' / 'library.md').read_text().split('## All public names')[1]
    rows = '\n'.join(line for line in table.splitlines() if line.startswith('|'))
    assert sorted(set(re.findall(r'`(\w+)`', rows))) == sorted(limpid.__all__)


@pytest.mark.parametrize(('code', 'message'), [
    ('x = 1\nprint(x)   # 2', 'page.md:3: this block prints\n1\n'),
    ('x = 1\nprint(x)', 'page.md:3: this block prints\n1\n'),
    ('x = 1\ny = x.z', 'page.md:5: AttributeError'),
    ('x = 1\ny = (', 'page.md:5: SyntaxError'),
])
def test_a_wrong_block_fails_with_its_line(code, message):
    with pytest.raises(pytest.fail.Exception, match=re.escape(message)):
        run_page('page.md', f'# Title\n\n```python\n{code}\n```\n')
