"""The shape of the code: who imports whom, and how long functions are."""

import ast
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a package may import of ours, besides itself. Whatever is not listed here, a script at the
# root among others, may import all of them.
BELOW = {
    'dnnlib': set(),
    'limpid': set(),
    'torch_utils': {'dnnlib'},
    'data': {'dnnlib', 'limpid', 'torch_utils'},
    'training': {'dnnlib', 'limpid', 'torch_utils', 'data'},
    'metrics': {'dnnlib', 'limpid', 'torch_utils'},
    'reports': {'dnnlib', 'data', 'training'},
    'checkpoints': {'dnnlib', 'limpid', 'torch_utils', 'data', 'training'},
    'options': {'dnnlib', 'limpid', 'torch_utils', 'data', 'training', 'checkpoints'},
    'evaluation': {'dnnlib', 'limpid', 'torch_utils', 'data', 'training', 'metrics', 'checkpoints',
                   'options'},
    'reproduction': {'dnnlib', 'limpid', 'torch_utils', 'data', 'training', 'metrics',
                     'checkpoints', 'options', 'evaluation'},
}
PACKAGES = set(BELOW)
APART = {'benchmarks', 'docs', 'tests'}   # which nobody else imports


def files(*folders):
    """The files of Python in these folders; '' is the root alone."""
    found = []
    for folder in folders:
        found += sorted((ROOT / folder).glob('**/*.py' if folder else '*.py'))
    return found


def name_of(path):
    """The name under which a file is imported: limpid/steps.py is limpid.steps."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


CODE = files('', *sorted(PACKAGES))             # the program; benchmarks and pictures are beside it
ALL = files('', *sorted(PACKAGES | APART))
TREES = {path: ast.parse(path.read_text()) for path in ALL}
NAMES = {name_of(path): path for path in ALL}
SCRIPTS = {name_of(path) for path in files('')}


def imports(path):
    """The full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name_of(path)} has a relative import'
            base = node.module
            yield base
            yield from (f'{base}.{alias.name}' for alias in node.names
                        if f'{base}.{alias.name}' in NAMES)


def top(name):
    return name.partition('.')[0]


@pytest.mark.parametrize('package', sorted(BELOW))
def test_a_package_imports_only_those_below_it(package):
    ours = PACKAGES | APART | SCRIPTS
    upward = [f'{name_of(path)} imports {name}' for path in files(package) for name in imports(path)
              if top(name) in ours - BELOW[package] - {package}]
    assert upward == []


def test_no_script_imports_a_script_and_nothing_imports_what_lies_apart():
    wrong = [f'{name_of(path)} imports {name}' for path in CODE for name in imports(path)
             if top(name) in SCRIPTS | APART]
    assert wrong == []


def test_commands_begin_with_what_has_to_come_first():
    """How threads wait, and signals: later would be too late."""
    first = {name_of(path): ast.unparse(next(node for node in TREES[path].body if isinstance(
        node, ast.Import | ast.ImportFrom))) for path in files('')}
    assert set(first.values()) == {'import dnnlib.early'}, first


def test_no_circle_of_imports():
    graph = {name: {other for other in imports(path) if other in NAMES and other != name}
             for name, path in NAMES.items()}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []   # what is left imports something that, in the end, imports it


@pytest.mark.parametrize('package, allowed', [('limpid', {'torch', 'numpy'}),
                                              ('dnnlib', {'click', 'matplotlib', 'tqdm'})])
def test_what_a_package_takes_from_others(package, allowed):
    """The library needs torch and numpy alone; dnnlib works without torch."""
    known = sys.stdlib_module_names | allowed | {package}
    assert [f'{name_of(path)} imports {name}' for path in files(package) for name in imports(path)
            if top(name) not in known] == []


def test_no_file_changes_the_path_of_imports():
    calls = [name_of(path) for path in ALL for node in ast.walk(TREES[path])
             if isinstance(node, ast.Attribute) and ast.unparse(node) == 'sys.path.insert']
    assert calls == []


def test_no_package_has_more_than_a_quarter_of_the_code():
    sizes = {package: sum(len(list(filter(str.strip, path.read_text().splitlines())))
                          for path in CODE if top(name_of(path)) == package)
             for package in sorted(PACKAGES)}
    total = sum(len(list(filter(str.strip, path.read_text().splitlines()))) for path in CODE)
    assert {package: size for package, size in sizes.items() if size > total / 4} == {}


def functions():
    """(name, lines) of all functions and methods, tests apart, with the docstring."""
    for path in files('', *sorted(PACKAGES), 'benchmarks', 'docs'):
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef):
                yield f'{name_of(path)}.{node.name}', node.end_lineno - node.lineno + 1


def test_functions_are_short():
    lengths = sorted(length for _, length in functions())
    assert lengths[math.ceil(0.95 * len(lengths)) - 1] <= 27
