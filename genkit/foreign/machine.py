"""Reads pickles: carries out their opcodes on plain data, and on records in place of objects."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

from genkit.errors import CheckpointError
from genkit.foreign.arrays import Array, Kind
from genkit.foreign.bounded import Bounded
from genkit.foreign.inert import Inert
from genkit.foreign.names import Names, call, key_of

# The opcodes of all pickles of a file. A tensor takes about 50.
OPCODES = 2_000_000


class Machine:
    """Carries out pickles of one file; `persistent` answers their references to storages.

    `pickle.Unpickler` allocates whatever an opcode announces, calls methods of the objects on its
    stack, copies arguments, and hashes keys of any kind, so that a small file can take all memory
    or hours even if `find_class` imports nothing. Here pickletools decodes the opcodes, each costs
    time and memory in proportion to its bytes, and there is no recursion.
    """

    def __init__(self, names: Names, persistent: Callable[[Any], Any]) -> None:
        self.names, self.persistent = names, persistent
        self.done = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self, file: IO[bytes]) -> Any:
        """The value of the pickle at the place of `file`, which is left behind its end."""
        self.stack, self.below, self.memo = [], [], {}
        try:
            for opcode, arg, _ in pickletools.genops(cast(Any, Bounded(file))):
                self.done += 1
                if self.done > OPCODES:
                    raise CheckpointError(
                        f"its pickle has over {OPCODES} opcodes; save the model's weights alone"
                    )
                if opcode.name in _VALUES:
                    self.stack.append(arg)
                elif opcode.name == "STOP":
                    break
                elif opcode.name in _ACTS:
                    _ACTS[opcode.name](self, arg)
                else:
                    raise ValueError(f"{opcode.name} has no place in a checkpoint")
            return self.stack.pop()
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            reason = " ".join(str(error).split())[:100]
            raise CheckpointError(
                f"its pickle is damaged ({reason}); copy or download it again"
            ) from error

    def marked(self) -> list[Any]:
        """The values above the last mark, taken off."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def mark(self, arg: Any) -> None:
        """Begin a group of values."""
        self.below.append(self.stack)
        self.stack = []

    def pop(self, arg: Any) -> None:
        """Drop a value, or a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def drop(self, arg: Any) -> None:
        """Drop the values above the last mark, and the mark."""
        self.marked()

    def few(self, count: int) -> None:
        """Make a tuple of the last `count` values."""
        if len(self.stack) < count:
            raise ValueError("a tuple lacks values")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: list[Any]) -> None:
        """Append values to the list below them."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.values = target.values if target.values is not None else []
            target.values.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise ValueError("it appends to something other than a list")

    def put(self, pairs: list[Any]) -> None:
        """Put pairs of keys and values into the dict below them."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items = target.items if target.items is not None else {}
            target = target.items
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("it puts items into something other than a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[key_of(key)] = value

    def keep(self, index: int) -> None:
        """Remember the last value under a number."""
        self.memo[index] = self.stack[-1]

    def make(self, function: Any, args: Any) -> None:
        """Push the record of a call."""
        self.stack.append(call(function, args))

    def reduce(self, arg: Any) -> None:
        """Call what lies below its arguments."""
        args = self.stack.pop()
        self.make(self.stack.pop(), args)

    def new_with_keywords(self, arg: Any) -> None:
        """Make an object with keyword arguments, which are left out."""
        self.stack.pop()
        self.reduce(arg)

    def build(self, arg: Any) -> None:
        """Give the last object its state; a plain dict or a tensor has none."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, Array | Kind):
            target.build(state)

    def instance(self, arg: str) -> None:
        """Make an object of the class that the opcode names."""
        self.make(self.names.find(*arg.split(" ", 1)), tuple(self.marked()))

    def object(self, arg: Any) -> None:
        """Make an object of the class that lies below its arguments."""
        function, *args = self.marked()
        self.make(function, tuple(args))

    def find(self, arg: Any) -> None:
        """Answer a name from the stack."""
        name = self.stack.pop()
        self.stack.append(self.names.find(self.stack.pop(), name))


def _dict(machine: Machine, arg: Any) -> None:
    pairs = machine.marked()
    machine.stack.append({})
    machine.put(pairs)


def _last(machine: Machine, count: int) -> list[Any]:
    values = machine.stack[-count:]
    del machine.stack[-count:]
    return values


def _push(value: Callable[[Machine, Any], Any]) -> Callable[[Machine, Any], None]:
    def act(machine: Machine, arg: Any) -> None:
        result = value(machine, arg)  # It may change which list is the stack.
        machine.stack.append(result)

    return act


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
_get = _push(lambda machine, arg: machine.memo[arg])
_list = _push(lambda machine, arg: machine.marked())
_empty = _push(lambda machine, arg: [])
# Sets become lists: their values could be chosen to share one hash.
_ACTS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, arg: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.keep),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), _empty),
    **dict.fromkeys(("LIST", "FROZENSET"), _list),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine.reduce),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, arg: machine.append(machine.marked())),
    "MEMOIZE": lambda machine, arg: machine.keep(len(machine.memo)),
    "NONE": _push(lambda machine, arg: None),
    "NEWTRUE": _push(lambda machine, arg: True),
    "NEWFALSE": _push(lambda machine, arg: False),
    "EMPTY_TUPLE": _push(lambda machine, arg: ()),
    "EMPTY_DICT": _push(lambda machine, arg: {}),
    "DUP": _push(lambda machine, arg: machine.stack[-1]),
    "TUPLE": _push(lambda machine, arg: tuple(machine.marked())),
    "TUPLE1": lambda machine, arg: machine.few(1),
    "TUPLE2": lambda machine, arg: machine.few(2),
    "TUPLE3": lambda machine, arg: machine.few(3),
    "DICT": _dict,
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": Machine.drop,
    "APPEND": lambda machine, arg: machine.append(_last(machine, 1)),
    "SETITEM": lambda machine, arg: machine.put(_last(machine, 2)),
    "SETITEMS": lambda machine, arg: machine.put(machine.marked()),
    "NEWOBJ_EX": Machine.new_with_keywords,
    "BUILD": Machine.build,
    "INST": Machine.instance,
    "OBJ": Machine.object,
    "GLOBAL": _push(lambda machine, arg: machine.names.find(*arg.split(" ", 1))),
    "STACK_GLOBAL": Machine.find,
    "BINPERSID": _push(lambda machine, arg: machine.persistent(machine.stack.pop())),
}
