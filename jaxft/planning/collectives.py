"""What a compiled program sends between devices, read from its HLO text.

A loop's collectives count as often as it runs: its trip count is worked out from the constant that
its condition compares with and from the step of its counter; one that the data decide counts as
one. An asynchronous collective counts where it starts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, prod

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_CALLERS = r"(?:calls|to_apply|called_computations|branch_computations|\w+_computation)"
_CALLED = re.compile(_CALLERS + r"=(\{[^}]*\}|%[\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_STARTS_ASYNC = "AsyncCollectiveStart"
_TRIPS = re.compile(r'known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)')


@dataclass(frozen=True)
class Collective:
    """One collective of a program, on one device."""

    kind: str
    bytes: int
    """Of the whole value it gathers, reduces or passes on, each time."""
    count: int
    """How often a run of the program does it."""
    in_loop: bool
    devices: int
    """How many exchange."""
    source: str
    """What it was made from, as JAX names it."""

    @property
    def moved_bytes(self) -> float:
        """What one device sends, in all, with an algorithm that sends as little as can be."""
        others = (self.devices - 1) / self.devices
        share = {"all-reduce": 2 * others}.get(self.kind, others)
        return self.bytes * self.count * (1 if "permute" in self.kind else share)


def collectives(hlo: str) -> list[Collective]:
    """Those of the program that `compiled.as_text()` prints.

    Raises:
        ValueError: a loop around a collective whose trip count cannot be read, or groups of
            devices that cannot.
    """
    return list(_Program(hlo).walk())


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Per kind: how often, the bytes one device sends, and how many of those outside of loops."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0, "outside_loops_bytes": 0.0})
        row["count"] += one.count
        row["bytes"] += one.moved_bytes
        row["outside_loops_bytes"] += 0 if one.in_loop else one.moved_bytes
    return table


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    """What stands in the parentheses: operands, or a constant's value."""
    attributes: str

    @property
    def called(self) -> list[str]:
        return [name for group in _CALLED.findall(self.attributes) for name in _NAME.findall(group)]

    def attribute(self, name: str) -> str:
        """The computation that an attribute names."""
        found = re.search(rf"\b{name}=%([\w.\-]+)", self.attributes)
        assert found is not None, f"{self.opcode} without {name}"
        return found[1]

    @property
    def index(self) -> int:
        found = re.search(r"\bindex=(\d+)", self.attributes)
        return int(found[1]) if found else 0


@dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def parameters(self) -> dict[str, int]:
        """The number of each parameter, by its name."""
        return {
            i.name: int(i.inside) for i in self.instructions.values() if i.opcode == "parameter"
        }


@dataclass(frozen=True)
class _Value:
    """How a scalar comes about: a constant, or an element of the loop's state plus a constant."""

    constant: int
    element: int | None = None


class _Program:
    def __init__(self, hlo: str):
        self.computations: dict[str, _Computation] = {}
        self.entry = ""
        devices = re.search(r"num_partitions=(\d+)", hlo[: hlo.find("\n")])
        self.devices = int(devices[1]) if devices else 1
        here: _Computation | None = None
        for line in _COMMENT.sub("", hlo).splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                here = _Computation(line.removeprefix("ENTRY ").lstrip("%").split(" ")[0])
                self.computations[here.name] = here
                self.entry = here.name if line.startswith("ENTRY ") else self.entry
            elif here is not None and " = " in line:
                read = _instruction(line)
                here.instructions[read.name] = read
                if line.lstrip().startswith("ROOT "):
                    here.root = read.name
        self.started = {
            channel
            for computation in self.computations.values()
            if _starts(computation)
            for i in computation.instructions.values()
            if (channel := _channel(i)) is not None
        }

    def walk(self) -> Iterator[Collective]:
        yield from self._of(self.computations[self.entry], False)

    def _of(self, here: _Computation, in_loop: bool) -> Iterator[Collective]:
        """What one run of a computation does."""
        for one in here.instructions.values():
            kind = one.opcode.removesuffix("-start")
            if one.opcode == "while":
                body = self.computations[one.attribute("body")]
                inside = list(self._of(body, True))
                trips = self._trips(one, here) if inside else 0
                yield from (replace(c, count=c.count * trips) for c in inside)
            elif kind in KINDS:
                # Later steps of an asynchronous collective repeat it, in computations of their own.
                if _channel(one) not in self.started or _starts(here):
                    yield self._collective(kind, one, here, in_loop)
            elif not one.opcode.endswith(("-done", "-update")):
                for name in one.called:
                    yield from self._of(self.computations[name], in_loop)

    def _collective(
        self, kind: str, one: _Instruction, here: _Computation, in_loop: bool
    ) -> Collective:
        devices = _group_size(one.attributes, self.devices)
        size = sum(_bytes(here.instructions[name].shape) for name in one.operands)
        size *= devices if kind == "all-gather" else 1
        source = re.search(r'op_name="([^"]*)"', one.attributes)
        return Collective(kind, size, 1, in_loop, devices, source[1] if source else "")

    def _trips(self, loop: _Instruction, here: _Computation) -> int:
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        body = self.computations[loop.attribute("body")]
        compare, values = self._compare(condition)
        if compare is not None and len(values) == 2:
            if all(value.element is not None for value in values):
                return 1  # the data decide when it ends
            counter, limit = sorted(values, key=lambda value: value.element is None)
            if counter.element is not None and limit.element is None:
                root = body.instructions[body.root]
                after = self._value(root.operands[counter.element], body, {})
                start = self._initial(loop, here, counter.element)
                same = after is not None and after.element == counter.element
                if after is not None and same and after.constant > 0:
                    more = "direction=LE" in compare.attributes
                    return ceil((limit.constant + more - start) / after.constant)
        raise ValueError(f"no trip count can be read for the loop {loop.name} ({condition.name})")

    def _compare(self, condition: _Computation) -> tuple[_Instruction | None, list[_Value]]:
        """The comparison at the root of a condition, and its two sides."""
        root = condition.instructions[condition.root]
        where, given = condition, {}
        if root.opcode == "fusion":
            where = self.computations[root.called[0]]
            given = {i: self._value(name, condition, {}) for i, name in enumerate(root.operands)}
            root = where.instructions[where.root]
        if root.opcode != "compare":
            return None, []
        sides = [self._value(name, where, given) for name in root.operands]
        return root, [side for side in sides if side is not None]

    def _value(
        self, name: str, here: _Computation, given: dict[int, _Value | None]
    ) -> _Value | None:
        """A scalar as a function of the loop's state, None where it is anything else."""
        one = here.instructions[name]
        if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside):
            return _Value(int(one.inside))
        if one.opcode == "parameter":
            return given.get(int(one.inside))
        if one.opcode == "get-tuple-element":
            inner = here.instructions[one.operands[0]]
            return _Value(0, one.index) if inner.opcode == "parameter" else None
        if one.opcode in ("copy", "bitcast"):
            return self._value(one.operands[0], here, given)
        if one.opcode == "add":
            a, b = (self._value(operand, here, given) for operand in one.operands)
            if a is None or b is None or (a.element is not None and b.element is not None):
                return None
            return _Value(a.constant + b.constant, b.element if a.element is None else a.element)
        if one.opcode == "fusion":
            inside = self.computations[one.called[0]]
            passed = {i: self._value(n, here, given) for i, n in enumerate(one.operands)}
            return self._value(inside.root, inside, passed)
        return None

    def _initial(self, loop: _Instruction, here: _Computation, element: int) -> int:
        """The counter's first value: a constant; 0 where the loop's state comes from elsewhere."""
        state = here.instructions[loop.operands[0]]
        if state.opcode != "tuple":
            return 0
        value = self._value(state.operands[element], here, {})
        return value.constant if value is not None and value.element is None else 0


def _instruction(line: str) -> _Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    cut = _balanced(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:cut], rest[cut:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    cut = _balanced(rest)
    inside = rest[1 : cut - 1]
    return _Instruction(
        name.lstrip("%"), shape, opcode, tuple(_NAME.findall(inside)), inside, rest[cut:]
    )


def _balanced(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced: {text[:80]}")


def _starts(computation: _Computation) -> bool:
    return any(_STARTS_ASYNC in i.attributes for i in computation.instructions.values())


def _channel(one: _Instruction) -> str | None:
    found = re.search(r"channel_id=(\d+)", one.attributes)
    return found[1] if found else None


def _bytes(shape: str) -> int:
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        bits = _BITS.get(kind) if kind in _BITS else int(re.findall(r"\d+", kind)[0])
        size = prod(int(d.removeprefix("<=")) for d in dims.split(",") if d)
        total += size * (bits or 0) // 8
    return total


def _group_size(attributes: str, everyone: int) -> int:
    """Devices of a group, however the groups are written.

    Raises:
        ValueError: they are written in a way that is not known.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", attributes)
    if listed:
        return everyone if "source_target" in listed[0] else len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if counted:
        return int(counted[1])
    # Between a mesh and the axes that are used may stand how its devices are numbered.
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{([^}]*)\}", attributes)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return prod(int(part) if part else sizes[axis] for axis, part in used)
    given = re.search(r"replica_groups=(?!\{\})\S*", attributes)
    if given:
        raise ValueError(f"groups of a collective that cannot be read: {given[0]}")
    return everyone
