"""The map from the papers to the code: it is complete, and all that it names exists.

So does all that CONTRIBUTING.md names.
"""

import importlib
import re
from pathlib import Path

import pytest

from limpid import table1

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'map.md').read_text()
GUIDE = (ROOT / 'CONTRIBUTING.md').read_text()
ENTRY = re.compile(r'`([\w/]+\.py)` `([\w.]+)`')   # `limpid/solvers.py` `SecondOrder`


def tables(page):
    """{heading: [row, ...]} of the tables; a row is its cells, the first row is the head."""
    found, heading = {}, ''
    for line in page.splitlines():
        if line.startswith('#'):
            heading = line.lstrip('# ')
        elif line.startswith('|') and not line.startswith('| ---'):
            found.setdefault(heading, []).append([cell.strip() for cell in line.split('|')[1:-1]])
    return found


def lookup(path, name):
    """The object `name` of the file `path`; ImportError or AttributeError where there is none."""
    if not (ROOT / path).is_file():
        raise ImportError(f'there is no {path}')
    thing = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
    for part in name.split('.'):
        fields = getattr(thing, '__dataclass_fields__', {})
        thing = fields[part] if part in fields else getattr(thing, part)
    return thing


@pytest.mark.parametrize(('path', 'name'), sorted(set(ENTRY.findall(PAGE + GUIDE))))
def test_it_exists(path, name):
    lookup(path, name)


def test_the_files_that_contributing_names_exist():
    named = re.findall(r'`([\w/]+\.py)`', GUIDE)
    assert 'limpid/solvers.py' in named
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize(('path', 'name'), [
    ('limpid/solvers.py', 'SecondOrders'), ('limpid/solvers.py', 'SecondOrder.beta'),
    ('limpid/solver.py', 'SecondOrder'), ('torch/nn.py', 'Module')])
def test_a_wrong_entry_is_noticed(path, name):
    with pytest.raises((ImportError, AttributeError)):
        lookup(path, name)


def test_every_row_says_where():
    for heading, (head, *rows) in tables(PAGE).items():
        for row in rows:
            assert len(row) == len(head), (heading, row)
            assert row[0] and ENTRY.search(row[-1]) or row[-1] == 'any module', (heading, row)
            # nothing that looks like an entry but is written otherwise, and so would go unchecked
            assert '.py' not in ENTRY.sub('', row[-1]), (heading, row)


def numbered(heading, what):
    """The numbers of the rows under `heading` that are just called `what` and a number."""
    rows = tables(PAGE)[heading]
    return [int(row[0].split()[1]) for row in rows if re.fullmatch(rf'{what} \d+', row[0])]


def test_no_equation_or_algorithm_is_missing():
    assert numbered('EDM: equations', r'Eq\.')[:8] == list(range(1, 9))
    assert numbered('Lin et al.: equations', r'Eq\.') == list(range(1, 23))
    assert numbered('EDM: algorithms', 'Algorithm') == [1, 2, 3]
    assert numbered('Lin et al.: tables and algorithms', 'Algorithm') == [1, 2]


def test_the_equations_that_the_code_cites_are_on_the_map():
    """Of the EDM paper: a bare number beyond those of Lin et al. can be of no other."""
    cited = set()
    for path in (ROOT / 'limpid').glob('*.py'):
        cited |= {int(number) for number in re.findall(r'Eq\. (\d+)', path.read_text())}
    assert 57 in cited
    assert {number for number in cited if number > 22} <= set(numbered('EDM: equations', r'Eq\.'))


def test_table_1_is_the_one_of_the_code():
    """Each cell names the class of an object that the column of that name is made of."""
    head, whole, *rows = tables(PAGE)['EDM: Table 1']
    assert [name.lower() for name in head[1:]] == list(table1.COLUMNS)
    assert len(rows) == 12   # the rows of the paper's table, and what its footnote says of the loss
    for i, (name, make) in enumerate(table1.COLUMNS.items(), start=1):
        assert ENTRY.findall(whole[i]) == [('limpid/table1.py', name)]
        parts = {part if isinstance(part, type) else type(part) for part in vars(make()).values()}
        for row in rows:
            for path, entry in ENTRY.findall(row[i]):
                if path.startswith('limpid/'):
                    assert lookup(path, entry.split('.')[0]) in parts, (name, row[0])
