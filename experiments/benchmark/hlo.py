"""Reads a program that XLA has optimised: what its cost model expects, and what crosses devices.

XLA's text (HLO) has one instruction a line, in computations. The TPU compiler writes `estimated_cycles`
of its cost model beside instructions. Collectives and copies between memories have no such estimate.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("convolution", "reduction", "elementwise", "movement")
# cuDNN's calls, and what they compute.
CALLS = {"Forward": "forward", "BackwardInput": "by image", "BackwardFilter": "by kernel"}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|\w+_computations?)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
# As f32[16,10], bf16[] or pred[3], of which the last has no number of bits.
_ARRAY = re.compile(r"\b[a-z]+(\d*)[a-z0-9]*\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter)(-done)?"
)
_CUDNN = re.compile(
    r'window=\{size=(\d+(?:x\d+)*).*custom_call_target="__cudnn\$conv(\w+?)(?:Graph)?"'
)
# Of what moves numbers, or only names them, and computes nothing.
_MOVES = frozenset(
    """bitcast broadcast concatenate constant copy dynamic-slice dynamic-update-slice gather
    get-tuple-element iota pad parameter reshape reverse slice transpose tuple""".split()  # noqa: SIM905
)


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
      shape: Of its result, as XLA writes it; a tuple's in brackets.
      opcode: What it does, as `fusion`.
      line: All of it.
    """

    shape: str
    opcode: str
    line: str

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        return [
            name for names in _CALLED.findall(self.line) for name in re.findall(r"[\w.\-]+", names)
        ]


class Hlo:
    """An optimised program on one device.

    Args:
      text: As `jax.stages.Compiled.as_text` has it.
    """

    def __init__(self, text: str) -> None:
        self._computations: dict[str, list[Instruction]] = {}
        name = entry = ""
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                name = head[2]
                self._computations[name] = []
                entry = name if head[1] else entry
            elif name and (found := _INSTRUCTION.match(line)):
                self._computations[name].append(Instruction(found[1], found[2], line))
        self._times: Counter[str] = Counter()
        self._run(entry, 1)

    def cycles(self) -> dict[str, int]:
        """Estimated cycles by kind of operation, one of KINDS; in loops as often as they turn."""
        total = dict.fromkeys(KINDS, 0)
        for times, instruction in self._instructions():
            if found := _CYCLES.search(instruction.line):
                total[self._kind(instruction)] += times * int(found[1])
        return total

    def collectives(self) -> dict[str, tuple[int, int]]:
        """By name: how many, and the bytes that a device has of them, without padding.

        Of an all-gather these are everybody's, its own among them.
        """
        count: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for times, instruction in self._instructions():
            # One that starts and is waited for is counted where it is done.
            if found := _COLLECTIVE.fullmatch(instruction.opcode):
                count[found[1]] += times
                size[found[1]] += times * _bytes(instruction.shape)
        return {name: (count[name], size[name]) for name in count}

    def convolutions(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Calls of cuDNN by what they compute: how many, and the sides of their largest window."""
        count = dict.fromkeys(CALLS.values(), 0)
        window = dict.fromkeys(CALLS.values(), (0,))
        for times, instruction in self._instructions():
            if found := _CUDNN.search(instruction.line):
                # Others, as convBiasActivationForward, are forward with more behind them.
                kind = CALLS.get(found[2], CALLS["Forward"])
                count[kind] += times
                window[kind] = max(window[kind], tuple(map(int, found[1].split("x"))))
        return {kind: (count[kind], window[kind]) for kind in count}

    def _run(self, name: str, times: int) -> None:
        """Counts how often each computation runs; the inside of a fusion is a part of it."""
        self._times[name] += times
        for instruction in self._computations.get(name, ()):
            if instruction.opcode in ("while", "call", "conditional", "async-start"):
                trips = _TRIPS.search(instruction.line)
                for called in instruction.called:
                    self._run(called, times * int(trips[1] if trips else 1))

    def _instructions(self) -> Iterator[tuple[int, Instruction]]:
        for name, times in self._times.items():
            for instruction in self._computations.get(name, ()):
                yield times, instruction

    def _opcodes(self, instruction: Instruction) -> set[str]:
        """Its own, or all of the inside of a fusion."""
        if instruction.opcode != "fusion":
            return {instruction.opcode}
        inside = (i for name in instruction.called for i in self._computations.get(name, ()))
        return set().union(*map(self._opcodes, inside))

    def _kind(self, instruction: Instruction) -> str:
        opcodes = self._opcodes(instruction)
        if opcodes & {"convolution", "dot"}:
            return "convolution"
        if opcodes & {"reduce", "reduce-window"}:
            return "reduction"
        return "movement" if opcodes <= _MOVES else "elementwise"


def _bytes(shape: str) -> int:
    """Of all arrays in a shape."""
    sizes = ((int(bits or 8), n.split(",")) for bits, n in _ARRAY.findall(shape))
    return sum(bits * math.prod(int(side) for side in sides if side) for bits, sides in sizes) // 8
