"""Pickles read as data, by a machine of our own that can do nothing but put values together.

    value = read_pickle(file, {('collections', 'OrderedDict'): ordered_dict}, persistent_load)

A pickle is a program. This module runs the small part of its language that checkpoints need:
constants, containers, and calls of names in `allowed`, a plain mapping from (module, name) to
functions of ours. A name is looked up there and nowhere else: nothing is imported, no attribute is
followed, no method of a stored class is called.

Why not pickle.Unpickler with a find_class of our own? That decides only about names. The Unpickler
still allocates what a file claims (an eleven-byte file can ask for a table of gigabytes), it
calls any method called __setstate__ or append that it meets, it reads copyreg's global registry of
extensions, and a tuple nested a million deep as the key of a dictionary overflows the C stack. Here

- a length is checked against the bytes that are left before anything is allocated;
- at most MAX_OPCODES are executed, and the arguments of functions are counted, so that time and
  memory are bounded by that number and by the size of the file;
- keys and members of sets are plain scalars;
- the result is a tree, or can be walked like one: no cycles, at most MAX_DEPTH deep, and at most
  MAX_NODES nodes with repetitions counted. A caller may recurse into it.
"""

import gc
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from dnnlib.console import shown

MAX_OPCODES = 350_000   # the largest published networks need about 100,000, CIFAR-100 200,000
MAX_DEPTH = 200
MAX_NODES = 350_000
MAX_NAME = 1000           # characters in the name of a module or class
MAX_INT = 16              # bytes of an integer


class ForbiddenError(ValueError):
    """An error for a pickle that asks for something other than data."""


class Global(NamedTuple):
    """A name of the allow-list, and the function that stands for it here."""
    module: str
    name: str
    make: Callable[..., Any]


@dataclass(eq=False, repr=False)
class Record:
    """An object of any class: the name of the class, arguments and state, but none of its code."""
    cls: str
    args: tuple[Any, ...] = ()
    state: Any = None

    def __repr__(self) -> str:
        return f'Record({shown(self.cls)})'


Allowed = Mapping[tuple[str, str], Callable[..., Any]]


def record(cls: str) -> Callable[..., Record]:
    """Return a function for `allowed` that turns objects of this class into records."""
    return lambda *args: Record(cls, args)


def ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    """Return a dictionary of (key, value) pairs; a function for `allowed`."""
    return {_key(key): value for key, value in items}


def plain_set(items: Iterable[Any] = ()) -> set[Any]:
    """Return a set of scalars; a function for `allowed`."""
    return {_key(item) for item in items}


def read_pickle(file: IO[bytes], allowed: Allowed,
                persistent_load: Callable[[object], object] | None = None,
                ) -> Any:   # noqa: ANN401 (plain values and whatever `allowed` makes)
    """Return the value of the pickle that starts at the file's position.

    The position is left behind the end of the pickle; `file` must be able to seek.
    `persistent_load` turns the persistent ids of the pickle into values; without it they are
    refused. Raises ForbiddenError for a name, or an opcode, that is not allowed, and ValueError for
    a pickle that is damaged, too large, too deep or cyclic; each in one line, which does not name
    the file.
    """
    collecting = gc.isenabled()
    gc.disable()   # it would look through all values again and again while there are more and more
    try:
        value = _Machine(file, allowed, persistent_load).run()
        check_tree(value)
    finally:
        if collecting:
            gc.enable()
    return value


class _Machine:
    """The state of one run: a stack, the stacks below each open mark, and the memo."""

    def __init__(self, file: IO[bytes], allowed: Allowed,
                 persistent_load: Callable[[object], object] | None) -> None:
        self.file, self.allowed, self.persistent_load = file, allowed, persistent_load
        start = file.tell()
        self.left = file.seek(0, 2) - start
        self.end = file.seek(start) + self.left
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # The size of all arguments that may still come: one value may be given to many calls.
        self.work = self.left + MAX_OPCODES

    def run(self) -> object:
        """Execute opcodes up to STOP, and return the value."""
        for _ in range(MAX_OPCODES):
            at, code = self.end - self.left, self.take(1)
            if code == pickle.STOP:
                if len(self.stack) != 1 or self.below:
                    raise ValueError(f'its pickle ends at byte {at} with {len(self.stack)} values '
                                     f'instead of one')
                return self.stack.pop()
            action = ACTIONS.get(code)
            if action is None:
                raise ForbiddenError(f'it has the pickle opcode {_name_of(code)} at byte {at}, '
                                     f'which is no data')
            try:
                action(self)
            except (UnicodeError, LookupError, TypeError, AttributeError, ArithmeticError,
                    RuntimeError) as error:
                raise ValueError(f'its pickle makes no sense at byte {at} ({_name_of(code)}: '
                                 f'{shown(str(error), 100)})') from None
        raise ValueError(f'its pickle has more than {MAX_OPCODES} opcodes')

    # Reading.

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f'its pickle claims {count} bytes at byte {self.end - self.left} of '
                             f'{self.end}')
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError('its pickle became shorter while it was read')
        return data

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), 'little', signed=signed)

    def long(self, count: int) -> int:
        if count > MAX_INT:
            raise ValueError(f'its pickle has an integer of {count} bytes')
        return self.number(count, signed=True)

    def line(self) -> str:
        data = self.file.readline(min(self.left, MAX_NAME))
        self.left -= len(data)
        if not data.endswith(b'\n'):
            raise ValueError('its pickle has a name without an end')
        return data[:-1].decode('utf-8')

    def text(self, count: int) -> str:
        return self.take(count).decode('utf-8', 'surrogatepass')   # file names that are no text

    # Putting values together.

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def check_protocol(self, protocol: int) -> None:
        if not 2 <= protocol <= pickle.HIGHEST_PROTOCOL:
            raise ValueError(f'its pickle has protocol {protocol}; 2 to {pickle.HIGHEST_PROTOCOL} '
                             f'can be read')

    def check_frame(self, count: int) -> None:
        if count > self.left:
            raise ValueError(f'its pickle claims a frame of {count} bytes where {self.left} are '
                             f'left')

    def look_up(self, module: object, name: object) -> None:
        if isinstance(module, str) and isinstance(name, str) and (module, name) in self.allowed:
            self.push(Global(module, name, self.allowed[module, name]))
            return
        told = f'{module}.{name}' if isinstance(name, str) else 'no name'
        raise ForbiddenError(f'it refers to {shown(told)}')

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise ForbiddenError(f'it calls {_kind(function)} with {_kind(arguments)}')
        self.work -= sum(len(a) for a in arguments
                         if isinstance(a, str | bytes | list | tuple | dict | set))
        if self.work < 0:
            raise ValueError('its pickle makes more of its values than it has')
        self.push(function.make(*arguments))

    def build(self) -> None:
        target, state = self.pop(2)
        if isinstance(target, Record):
            target.state = state
        elif type(target) is not dict:   # attributes of a dictionary are not among its contents
            raise ForbiddenError(f'it sets the attributes of {_kind(target)}')
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ForbiddenError(f'it sets {len(items)} keys and values of {_kind(target)}')
        target.update((_key(key), value)
                      for key, value in zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ForbiddenError(f'it appends to {_kind(self.stack[-1])}')
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not set:
            raise ForbiddenError(f'it adds to {_kind(self.stack[-1])}')
        self.stack[-1].update(map(_key, items))

    def dictionary(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def load_persistent(self, identity: object) -> None:
        if self.persistent_load is None:
            raise ForbiddenError('it refers to objects outside of itself')
        self.push(self.persistent_load(identity))


def _key(key: object) -> object:
    """Return a key that hashes at once and hardly ever collides. Raises ValueError for others.

    Hashes of large integers can be chosen at will.
    """
    if isinstance(key, str | bytes | float | bool | None):
        return key
    if type(key) is int and -2**63 <= key < 2**63:
        return key
    raise ValueError(f'it has {_kind(key)} as a key')


def _kind(value: object) -> str:
    if isinstance(value, Global):
        return f'the name {shown(f"{value.module}.{value.name}")}'
    if isinstance(value, Record):
        return f'an object of {shown(value.cls)}'
    return f'a {type(value).__name__}'


def _name_of(code: bytes) -> str:
    return OPCODE_NAMES.get(code, f'0x{code.hex()}')


def check_tree(root: object) -> None:
    """Raise ValueError unless `root` can be walked like a tree: see the limits at the top."""
    top = _children(root)
    if top is None:
        return
    done: dict[int, tuple[int, int]] = {}   # container: nodes with repetitions, height
    path: list[tuple[object, Iterator[object], list[int]]] = [(root, top, [1, 1])]
    on_path = {id(root)}
    while path:
        node, children, sums = path[-1]
        for child in children:
            grandchildren = _children(child)
            if grandchildren is None:
                sums[0] += 1
            elif id(child) in on_path:
                raise ValueError('its pickle refers to itself in a circle')
            elif id(child) in done:
                _add_child(sums, *done[id(child)])
            else:
                path.append((child, grandchildren, [1, 1]))
                on_path.add(id(child))
                break
        else:
            path.pop()
            on_path.remove(id(node))
            done[id(node)] = sums[0], sums[1]
            if path:
                _add_child(path[-1][2], *sums)
        if len(path) > MAX_DEPTH:
            raise ValueError(f'its pickle is nested more than {MAX_DEPTH} deep')


def _add_child(sums: list[int], nodes: int, height: int) -> None:
    sums[0], sums[1] = sums[0] + nodes, max(sums[1], height + 1)
    if sums[0] > MAX_NODES:
        raise ValueError(f'its pickle unfolds into more than {MAX_NODES} values')
    if sums[1] > MAX_DEPTH:
        raise ValueError(f'its pickle is nested more than {MAX_DEPTH} deep')


def _children(value: object) -> Iterator[object] | None:
    """Return the contents of a container, or None for a leaf."""
    if isinstance(value, dict):
        return iter(value.values())
    if isinstance(value, Record):
        return iter((value.args, value.state))
    if isinstance(value, Global) or not isinstance(value, list | tuple):
        return None
    return iter(value)


OPCODE_NAMES = {op.code.encode('latin1'): op.name for op in pickletools.opcodes}
ACTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: lambda m: m.check_protocol(m.number(1)),
    pickle.FRAME: lambda m: m.check_frame(m.number(8)),
    # Constants
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number(4, signed=True)),
    pickle.BININT1: lambda m: m.push(m.number(1)),
    pickle.BININT2: lambda m: m.push(m.number(2)),
    pickle.LONG1: lambda m: m.push(m.long(m.number(1))),
    pickle.LONG4: lambda m: m.push(m.long(m.number(4))),
    pickle.BINFLOAT: lambda m: m.push(struct.unpack('>d', m.take(8))[0]),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number(1))),
    pickle.BINUNICODE: lambda m: m.push(m.text(m.number(4))),
    pickle.BINUNICODE8: lambda m: m.push(m.text(m.number(8))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.number(1))),
    pickle.BINBYTES: lambda m: m.push(m.take(m.number(4))),
    pickle.BINBYTES8: lambda m: m.push(m.take(m.number(8))),
    # the strings of Python 2, whose coding nobody knows
    pickle.SHORT_BINSTRING: lambda m: m.push(m.take(m.number(1))),
    pickle.BINSTRING: lambda m: m.push(m.take(m.number(4))),
    # numpy's arrays in protocol 5; never changed here
    pickle.BYTEARRAY8: lambda m: m.push(m.take(m.number(8))),
    # Containers
    pickle.MARK: _Machine.mark,
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append(m.pop(1)),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(tuple(m.pop(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.pop(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.pop(3))),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: lambda m: m.dictionary(m.pop_mark()),
    pickle.SETITEM: lambda m: m.set_items(m.pop(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.ADDITEMS: lambda m: m.add(m.pop_mark()),
    # The memo
    pickle.MEMOIZE: lambda m: m.memoize(len(m.memo)),
    pickle.BINPUT: lambda m: m.memoize(m.number(1)),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.number(4)),
    pickle.BINGET: lambda m: m.push(m.memo[m.number(1)]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number(4)]),
    # Names of the allow-list, calls of them, and what is outside
    pickle.GLOBAL: lambda m: m.look_up(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.look_up(*m.pop(2)),
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: lambda m: m.load_persistent(m.stack.pop()),
}
