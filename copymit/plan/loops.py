"""What a compiled program does, loop by loop, read from its text.

XLA's own analysis counts the body of a loop once, however often it runs: 50 steps of a
sampler for one, a batch in parts for one of them. Here its operations and bytes are
estimated from shapes, once so and once with the loops, for the ratio of the two.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c\d+)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|branch_computations|called_computations)="
    r"(\{[^}]*\}|%[\w.-]+)"
)
_CONDITION = re.compile(r"\bcondition=%([\w.-]+)")
_PLACE = re.compile(r"\), index=(\d+)")
_INTEGER = re.compile(r"[su]\d+\[\]")
_KNOWN_TIMES = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")

# They name arrays, and move none; what computations do is counted within them.
_NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_NO_TRAFFIC |= {"while", "call", "conditional"}


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
      result: its type, with layouts.
      rest: what follows the opening parenthesis: operands and attributes.
    """

    name: str
    result: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return _NAME.findall(self.rest.partition(")")[0])


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: by name, the callee before who calls it.
      entry: where it begins.
    """

    computations: dict[str, list[Instruction]]
    entry: str


def read_program(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` returns."""
    computations: dict[str, list[Instruction]] = {}
    entry, inside = "", []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            inside.append(Instruction(*match.groups()))
        elif match := _COMPUTATION.match(line):
            inside = computations[match[2]] = []
            entry = match[2] if match[1] else entry
    return Program(computations, entry)


def runs(program: Program, *, loops: bool = True) -> Mapping[str, int]:
    """Counts how often each computation runs.

    A loop that may end earlier counts with the most that it can run.

    Args:
      loops: otherwise each loop runs once.
    """
    times: dict[str, int] = collections.defaultdict(int, {program.entry: 1})
    for name in reversed(program.computations):
        for instruction in program.computations[name]:
            n = _iterations(program, instruction) if loops else 1
            if asked := _CONDITION.search(instruction.rest):
                times[asked[1]] += (n + loops) * times[name]
            for callee in _callees(instruction):
                times[callee] += n * times[name]
    return times


def loop_factors(program: Program) -> tuple[float, float]:
    """Returns by what loops multiply a program's operations, and its bytes."""
    fused = {
        callee
        for inside in program.computations.values()
        for instruction in inside
        if instruction.opcode == "fusion"
        for callee in _callees(instruction)
    }
    operations, accessed = {}, {}
    for name, inside in program.computations.items():
        types = {i.name: i.result for i in inside}
        operations[name] = sum(_operations(i, types) for i in inside)
        if name not in fused:
            accessed[name] = sum(_accessed(i, types) for i in inside)
    often, once = runs(program), runs(program, loops=False)

    def factor(counts: Mapping[str, float]) -> float:
        total = sum(count * once[name] for name, count in counts.items())
        return (
            sum(n * often[name] for name, n in counts.items()) / total if total else 1
        )

    return factor(operations), factor(accessed)


def num_bytes(result: str) -> float:
    """Counts the bytes of a type."""
    return sum(_item_bytes(x) * math.prod(shape) for x, shape in _arrays(result))


def _iterations(program: Program, instruction: Instruction) -> int:
    """Reads how often a loop runs, from its condition where nothing else says so."""
    if instruction.opcode != "while":
        return 1
    if known := _KNOWN_TIMES.search(instruction.rest):
        return int(known[1])
    condition = _CONDITION.search(instruction.rest)
    if condition is None:
        return 1
    limit = max(_integers(program, condition[1]), default=1)
    return -(-limit // _stride(program, condition[1], *_callees(instruction)))


def _stride(program: Program, condition: str, body: str) -> int:
    """Reads by what the counter of a loop rises; 1 where it does not say."""
    inside = program.computations[body]
    made = {i.name: i for i in inside}
    results = next((i.operands for i in reversed(inside) if i.opcode == "tuple"), [])
    for compared in program.computations[condition]:
        place = _PLACE.search(compared.rest)
        if place is None or int(place[1]) >= len(results):
            continue
        risen = made.get(results[int(place[1])])
        for operand in risen.operands if risen and risen.opcode == "add" else ():
            if operand in made and made[operand].opcode == "constant":
                return max(1, _value(made[operand]))
    return 1


def _value(constant: Instruction) -> int:
    return int(constant.rest.partition(")")[0])


def _integers(program: Program, computation: str) -> Iterator[int]:
    """Yields the whole numbers that a computation, and what it calls, have in them."""
    for instruction in program.computations.get(computation, []):
        if instruction.opcode == "constant" and _INTEGER.match(instruction.result):
            yield _value(instruction)
        for callee in _callees(instruction):
            yield from _integers(program, callee)


def _callees(instruction: Instruction) -> Iterator[str]:
    """Yields the computations that an instruction runs, but for a loop's condition."""
    for called in _CALLED.findall(instruction.rest):
        yield from _NAME.findall(called)


def _operations(instruction: Instruction, types: Mapping[str, str]) -> float:
    """Counts the operations of a product or a convolution."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    arrays = [types.get(o, "") for o in instruction.operands[:2]]
    shapes = [next(_arrays(x))[1] for x in (*arrays, instruction.result)]
    if match := _CONTRACTED.search(instruction.rest):
        contracted = math.prod(shapes[0][i] for i in _numbers(match[1]))
        return 2.0 * math.prod(shapes[2]) * contracted
    labels, window = _LABELS.search(instruction.rest), _window(instruction.rest)
    if labels is None:
        return 0.0
    image, kernel, made = (
        dict(zip(letters, shape, strict=True))
        for letters, shape in zip(labels.groups(), shapes, strict=True)
    )
    total = 2.0 * made["b"] * made["f"] * kernel["i"]
    for axis in (x for x in made if x.isdigit()):
        settings = window[int(axis)] if window else {}
        total *= _products(image[axis], made[axis], kernel[axis], **settings)
    return total


@functools.cache
def _products(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    pad: int = 0,
    lhs_dilate: int = 1,
    rhs_dilate: int = 1,
) -> int:
    """Counts the products along an axis that are with inputs, not holes or padding.

    The compiler of TPUs writes products of many matrices as convolutions full of holes.
    """
    first = np.arange(outputs)[:, None] * stride - pad
    places = first + np.arange(size) * rhs_dilate
    inside = (places >= 0) & (places <= (inputs - 1) * lhs_dilate)
    return int((inside & (places % lhs_dilate == 0)).sum())


def _window(rest: str) -> list[dict[str, int]]:
    """Reads the settings of a convolution's axes; `pad` is what comes before."""
    match = _WINDOW.search(rest)
    fields = dict(field.split("=") for field in match[1].split()) if match else {}
    axes: dict[str, list[str]] = {k: v.split("x") for k, v in fields.items()}
    return [
        {
            name: int(values[axis].partition("_")[0])
            for name, values in axes.items()
            if name in ("stride", "pad", "lhs_dilate", "rhs_dilate")
        }
        for axis in range(len(axes.get("size", ())))
    ]


def _accessed(instruction: Instruction, types: Mapping[str, str]) -> float:
    """Counts what an instruction reads and writes."""
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
        return 0.0
    read = sum(num_bytes(types.get(o, "")) for o in instruction.operands)
    return read + num_bytes(instruction.result)


def _arrays(result: str) -> Iterator[tuple[str, list[int]]]:
    return ((dtype, _numbers(sizes)) for dtype, sizes in _ARRAY.findall(result))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _item_bytes(dtype: str) -> float:
    digits = re.search(r"\d+", dtype)
    return max(int(digits[0]) if digits else 8, 8) / 8
