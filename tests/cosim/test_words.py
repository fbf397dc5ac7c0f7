"""Statements on machine words against the templates of the CXXRTL runtime, value for value."""

import random
import subprocess

import pytest

from mxhw.cosim import _build, _words

WIDTHS = (1, 2, 7, 31, 32, 33, 45, 63, 64, 65, 96, 130)
ROUNDS = 60

UNARY = ("not", "pos", "neg")
BINARY = ("and", "or", "xor", "xnor", "add", "sub", "mul")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "eqx", "nex")
SHIFTS = ("shl", "sshl", "shr", "sshr", "shift", "shiftx")
REDUCTIONS = ("reduce_or", "reduce_and", "reduce_xor", "reduce_xnor", "reduce_bool", "logic_not")

HARNESS = """
#include <cxxrtl/cxxrtl.h>
#include <cstdio>
#include <random>
using namespace cxxrtl_yosys;
namespace cxxrtl_design {{
{declarations}
void before() {{
{before}
}}
void after() {{
{after}
}}
}}
int main() {{
\tusing namespace cxxrtl_design;
\tstd::mt19937 random(7);
\tfor (int round = 0; round < {rounds}; round++) {{
{draw}
{clear}
\t\tbefore();
{keep}
{clear}
\t\tafter();
{compare}
\t}}
}}
"""


class Statements:
    """Inputs, outputs and assignments of the form that Yosys writes."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.inputs = {f"p_in__{width}__{n}": width for width in WIDTHS for n in range(2)}
        self.outputs = {}
        self.lines = []

    def operand(self, width=None):
        names = [name for name, bits in self.inputs.items() if width in (None, bits)]
        name = self.random.choice(names)
        return name, self.inputs[name]

    def assign(self, expression, width, spare=0):
        """``spare``: bits of the target above and below those that are written."""
        name = f"p_out__{len(self.outputs)}"
        self.outputs[name] = width + 2 * spare
        target = f"{name}.slice<{spare + width - 1},{spare}>()" if spare else name
        self.lines.append(f"\t{target} = {expression};")

    def width(self):
        return self.random.choice(WIDTHS)


def operators():
    """Every operator with operands and results of many widths."""
    made = Statements(1)
    for _ in range(4):
        for name in UNARY:
            for sign in "us":
                width = made.width()
                made.assign(f"{name}_{sign}<{width}>({made.operand()[0]})", width)
        for name in BINARY:
            for signs in ("uu", "ss"):
                width = made.width()
                a, b = made.operand()[0], made.operand()[0]
                made.assign(f"{name}_{signs}<{width}>({a}, {b})", width)
        for name in COMPARISONS:
            for signs in ("uu", "ss"):
                width, equal = made.random.choice((1, 3, 40)), made.width()
                a = made.operand(equal)[0]
                b = made.operand(equal if made.random.random() < 0.5 else None)[0]
                made.assign(f"{name}_{signs}<{width}>({a}, {b})", width)
        for name in SHIFTS:
            for signs in ("uu", "su"):
                width = made.width()
                amount = f"{made.operand(made.random.choice((7, 33)))[0]}.slice<6,1>().val()"
                made.assign(f"{name}_{signs}<{width}>({made.operand()[0]}, {amount})", width)
        for name in REDUCTIONS:
            made.assign(f"{name}<1>({made.operand()[0]})", 1)
        for name in ("logic_and", "logic_or"):
            made.assign(f"{name}<2>({made.operand()[0]}, {made.operand()[0]})", 2)
    return made


def structures():
    """Slices, concatenations, repetitions, choices and constants, nested in one another."""
    made = Statements(2)
    rng = made.random

    def grow(depth):
        kind = rng.choice(("slice", "concat", "choice", "repeat", "sum", "xor", "constant"))
        if depth == 0 or kind == "constant" and rng.random() < 0.5:
            return made.operand()
        text, width = grow(depth - 1)
        if kind == "slice":
            high = rng.randrange(width)
            low = rng.randint(0, high)
            return f"{text}.slice<{high},{low}>().val()", high - low + 1
        if kind == "repeat":
            count = rng.choice((1, 5, 32, 40, 70))
            bit = rng.randrange(width)
            return f"{text}.slice<{bit}>().val().repeat<{count}>().val()", count
        if kind == "constant":
            words = [f"0x{rng.getrandbits(32):x}u" for _ in range(width // 32)]
            words += [f"{rng.getrandbits(width % 32)}u"] if width % 32 else []
            return f"xor_uu<{width}>({text}, value<{width}>{{{','.join(words)}}})", width
        other, second = grow(depth - 1)
        if kind == "concat":
            if width + second > 200:
                return text, width
            return f"{text}.concat({other}).val()", width + second
        if kind == "choice":
            same, _ = made.operand(width) if width in WIDTHS else (f"value<{width}>()", width)
            return f"({other} ? {text} : {same})", width
        return f"{'add' if kind == 'sum' else 'xor'}_uu<{width}>({text}, {other})", width

    for index in range(120):
        made.assign(*grow(index % 4 + 1), spare=rng.choice((0, 0, 1, 13)))
    return made


@pytest.mark.parametrize("statements", [operators, structures])
def test_statements_equal_the_runtime(tmp_path, statements):
    made = statements()
    declarations = [f"value<{width}> {name};" for name, width in made.inputs.items()]
    for name, width in made.outputs.items():
        declarations.append(f"value<{width}> {name}; value<{width}> {name}__kept;")
    before = "\n".join(made.lines)
    rewritten = _words.rewrite("\n".join([*declarations, before])).splitlines()
    after = rewritten[-len(made.lines) :]
    left = [new for new, old in zip(after, made.lines, strict=True) if new == old]
    # Products, shifts and orders of more than 64 bits.
    assert len(left) < len(made.lines) / 4

    draw = []
    for name, width in made.inputs.items():
        for word in range((width + 31) // 32):
            mask = (1 << min(32, width - 32 * word)) - 1
            # All zeros and all ones are as frequent as anything between.
            value = f"(random() % 3 ? random() : 0u - random() % 2) & 0x{mask:x}u"
            draw.append(f"\t\t{name}.data[{word}] = {value};")
    text = HARNESS.format(
        declarations="\n".join(declarations),
        before=before,
        after="\n".join(after),
        rounds=ROUNDS,
        draw="\n".join(draw),
        clear="\n".join(
            f"\t\t{name} = value<{w}>().bit_not();" for name, w in made.outputs.items()
        ),
        keep="\n".join(f"\t\t{name}__kept = {name};" for name in made.outputs),
        compare="\n".join(
            f'\t\tif ({name} != {name}__kept) std::printf("%s\\n", R"({line.strip()})");'
            for name, line in zip(made.outputs, made.lines, strict=True)
        ),
    )
    (tmp_path / "harness.cc").write_text(text)
    command = [*_build.find_compiler(), "-std=c++14", "-O0", "-w", "-DCXXRTL_NDEBUG"]
    include = str(_build.runtime_include())
    subprocess.run([*command, "-I", include, "harness.cc", "-o", "h"], cwd=tmp_path, check=True)
    output = subprocess.run([tmp_path / "h"], capture_output=True, text=True, check=True).stdout
    assert sorted(set(output.splitlines())) == []


def test_what_has_no_rule_is_left():
    text = "value<80> p_a;\nvalue<80> p_b;\n\tp_b = divfloor_uu<80>(p_a, p_a);\n\tp_c = p_a;\n"
    assert _words.rewrite(text) == text


def test_a_name_of_two_widths_is_left():
    text = "value<8> p_a;\nvalue<9> p_a;\nvalue<8> p_b;\n\tp_b = p_a;\n"
    assert _words.rewrite(text) == text
