"""Single modules of other programs, without what the rest of those programs needs."""

import importlib
import importlib.util
import sys
from types import ModuleType

# What modules that are taken here import, and what is taken from them does not use.
UNUSED = ('accelerate', 'dctorch', 'ema_pytorch', 'torchdiffeq', 'torchsde', 'torchvision',
          'torchvision.transforms')


class Missing(Exception):  # noqa: N818 (a state of affairs)
    """A reason why a peer cannot be measured here."""


class _Empty(ModuleType):
    """A module in which every name is None."""
    __path__: list[str] = []

    def __getattr__(self, name: str) -> None:
        if name.startswith('__'):
            raise AttributeError(name)


def part_of(package: str, *modules: str) -> list[ModuleType]:
    """Import modules of a package, but not what the package's __init__.py imports.

    UNUSED modules that are not installed are empty meanwhile, so `pip install --no-deps` is enough
    for most packages. Afterwards neither they nor the package are known to Python's imports.
    Raises Missing where the package, or a module that it does use, is not installed.
    """
    found = None if package in sys.modules and sys.modules[package] is None else (
        importlib.util.find_spec(package))
    if found is None or not found.submodule_search_locations:
        raise Missing(f'{package.replace("_", "-")} is not there: No module named {package!r}')
    before = {name: module for name, module in sys.modules.items() if _is_of(name, package)}
    bare = ModuleType(package)
    bare.__path__ = list(found.submodule_search_locations)
    empty = {name: _Empty(name) for name in UNUSED
             if name not in sys.modules and not _installed(name.partition('.')[0])}
    try:
        sys.modules.update({**empty, package: bare})
        return [importlib.import_module(f'{package}.{module}') for module in modules]
    except Exception as error:   # noqa: BLE001 (also of a torchvision for another torch)
        raise Missing(f'{package.replace("_", "-")} needs more than itself: {error}') from None
    finally:
        for name in [name for name in sys.modules if _is_of(name, package) or name in empty]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f'{package}.')


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None
