"""The C++ that Yosys wrote for a design, made ready for the compiler.

Yosys writes the whole evaluation of a design into one function, for which the time and memory of a
compiler grow faster than its length: minutes and gigabytes for tens of thousands of cells.
:func:`split` cuts the long functions into pieces of bounded length, in several files.

The pieces are member functions of ``p_top_split``, derived from the design's class ``p_top``. The
local variables that several pieces share become its members. They may have the names of members of
``p_top`` (which has one for each inner signal that was optimised away): being in the derived class
they hide those, as the local variables did.
"""

import re
from dataclasses import dataclass, field

__all__ = ["split"]

#: Designs with fewer characters of evaluation stay in one piece, which gives the fastest code.
SMALL_CHARACTERS = 100_000
#: Characters of a piece, and of a file.
PIECE_CHARACTERS = 60_000
UNIT_CHARACTERS = 400_000

#: The file of what runs once: reset and debug information. In a design of one piece it is all.
COLD = "design.cc"

_LOCAL = re.compile(r"\tvalue<\d+> (\w+);")
_EDGE = re.compile(r"\tbool (\w+) = this->\w+\(\);")
_NAME = re.compile(r"\bp_\w+|\bi_\w+")


@dataclass
class _Function:
    """A long function cut up: edges (name -> line), shared locals, and the pieces' bodies."""

    edges: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)


def split(design: str) -> dict[str, str]:
    """Return the files to compile, by name, for the C++ of a design."""
    start, end = _body(design, "bool p_top::eval(performer *performer) {\n")
    if end - start < SMALL_CHARACTERS:
        units = {COLD: design + "\nusing mxhw_top = cxxrtl_design::p_top;\n"}
    else:
        units = _split_units(design)
    units[COLD] += _constructor(design)
    return units


def _constructor(design: str) -> str:
    """The function by which the driver gets the design."""
    clock = "&top->p_clk.data[0]" if "/*input*/ value<1> p_clk;" in design else "nullptr"
    edges = set(re.findall(r"^\tvalue<1> (prev_\w+);", design, re.MULTILINE))
    last_clock = "&top->prev_p_clk.data[0]" if edges == {"prev_p_clk"} else "nullptr"
    deltas = "\tbool converged = false;" in design or bool(edges - {"prev_p_clk"})
    return (
        "\ncxxrtl::module *mxhw_design(uint32_t **clock, uint32_t **last_clock, bool *deltas) {\n"
        "\tmxhw_top *top = new mxhw_top;\n"
        f"\t*clock = {clock};\n\t*last_clock = {last_clock};\n"
        f"\t*deltas = {str(deltas).lower()};\n\treturn top;\n}}\n"
    )


def _body(text: str, head: str) -> tuple[int, int]:
    """Return where the body of the function with the given first line begins and ends."""
    start = text.index(head) + len(head)
    return start, text.index("\n}\n", start - 1) + 1


def _split_units(design: str) -> dict[str, str]:
    close = "}; // struct p_top\n"
    at = design.index(close) + len(close)
    declarations, definitions = design[:at], design[at:]

    start, end = _body(definitions, "bool p_top::eval(performer *performer) {\n")
    evaluation = _cut(definitions[start:end])
    converged = "true" if "\tbool converged = true;" in definitions[start:end] else "false"
    definitions = definitions[:start] + "\treturn true;\n" + definitions[end:]

    debug = _Function()
    if "void p_top::debug_eval() {\n" in definitions:
        start, end = _body(definitions, "void p_top::debug_eval() {\n")
        debug = _cut(definitions[start:end])
        call = "\tstatic_cast<p_top_debug *>(this)->debug_pieces();\n"
        definitions = definitions[:start] + call + definitions[end:]

    head = "\t\tbool changed = false;\n"
    start = declarations.index(head) + len(head)
    end = declarations.index("\t\treturn changed;\n", start)
    commits = _chunks(declarations[start:end].splitlines(keepends=True))
    declarations = declarations[:start] + declarations[end:]
    # The reset is run once, and long: as cold as the debug information that Yosys marks so.
    definitions = definitions.replace(
        "void p_top::reset() {\n", "CXXRTL_EXTREMELY_COLD\nvoid p_top::reset() {\n"
    )

    parameters = "performer *performer, bool &converged"
    classes = [
        "\nstruct p_top_debug : public p_top {\n",
        *debug.shared,
        *(f"\tvoid debug_{index}();\n" for index in range(len(debug.pieces))),
        "\tvoid debug_pieces();\n};\n\nstruct p_top_split : public p_top_debug {\n",
        *(f"\tbool {name};\n" for name in evaluation.edges),
        *evaluation.shared,
        *(f"\tvoid eval_{index}({parameters});\n" for index in range(len(evaluation.pieces))),
        *(f"\tvoid commit_{index}(bool &changed);\n" for index in range(len(commits))),
        "\tbool eval(performer *performer = nullptr) override;\n",
        "\tbool commit() override;\n};\n",
    ]
    namespace = "} // namespace cxxrtl_design\n"
    header = [declarations, *classes, namespace, "\nusing mxhw_top = cxxrtl_design::p_top_split;\n"]
    calls = [
        "\nvoid p_top_debug::debug_pieces() {\n",
        *(f"\tdebug_{index}();\n" for index in range(len(debug.pieces))),
        "}\n\nbool p_top_split::eval(performer *performer) {\n",
        f"\tbool converged = {converged};\n",
        *(f"\t{name} = this->p_top::{name}();\n" for name in evaluation.edges),
        *(f"\teval_{index}(performer, converged);\n" for index in range(len(evaluation.pieces))),
        "\treturn converged;\n}\n\nbool p_top_split::commit() {\n\tbool changed = false;\n",
        *(f"\tcommit_{index}(changed);\n" for index in range(len(commits))),
        "\treturn changed;\n}\n\n",
    ]
    pieces = [
        f"void p_top_split::eval_{index}({parameters}) {{\n{body}}}\n"
        for index, body in enumerate(evaluation.pieces)
    ]
    pieces += [
        f"void p_top_split::commit_{index}(bool &changed) {{\n\tobserver observer;\n{body}}}\n"
        for index, body in enumerate(commits)
    ]
    # These run only for waveforms and for reading a signal that was optimised away.
    cold = [
        f"CXXRTL_EXTREMELY_COLD\nvoid p_top_debug::debug_{index}() {{\n{body}}}\n"
        for index, body in enumerate(debug.pieces)
    ]
    opening = '#include "design.h"\nusing namespace cxxrtl_yosys;\n\nnamespace cxxrtl_design {\n\n'
    units = {"design.h": "#pragma once\n" + "".join(header)}
    for index, body in enumerate([*_group(pieces), *_group(cold)]):
        units[f"unit_{index}.cc"] = opening + body + namespace
    at = definitions.index(namespace)
    units[COLD] = opening + "".join(calls) + definitions[:at] + namespace
    return units


def _group(functions: list[str]) -> list[str]:
    groups: list[str] = []
    for text in functions:
        if groups and len(groups[-1]) + len(text) <= UNIT_CHARACTERS:
            groups[-1] += text
        else:
            groups.append(text)
    return groups


def _cut(body: str) -> _Function:
    """Cut up a function: its statements are blocks that begin with an indented comment."""
    result = _Function()
    local: dict[str, str] = {}
    blocks: list[list[str]] = []
    in_code = True
    for line in body.splitlines(keepends=True):
        stripped = line.rstrip("\n")
        if match := _LOCAL.fullmatch(stripped):
            local[match[1]] = line
            # The comments before a declaration describe it and go with it.
            if blocks and not in_code:
                blocks.pop()
            in_code = True
        elif match := _EDGE.fullmatch(stripped):
            result.edges[match[1]] = line
        elif stripped.startswith(("\tbool converged =", "\treturn converged;")):
            continue
        elif stripped.startswith("\t//"):
            if in_code:
                blocks.append([])
                in_code = False
            blocks[-1].append(line)
        else:
            if not blocks:
                blocks.append([])
            blocks[-1].append(line)
            in_code = True
    result.pieces = _chunks(["".join(block) for block in blocks])
    owners: dict[str, set[int]] = {}
    for index, piece in enumerate(result.pieces):
        for name in set(_NAME.findall(piece)):
            if name in local:
                owners.setdefault(name, set()).add(index)
    private: dict[int, list[str]] = {}
    for name, line in local.items():
        users = owners.get(name, set())
        if len(users) == 1:
            private.setdefault(min(users), []).append(line)
        elif users:
            result.shared.append(line)
    result.pieces = [
        "".join(private.get(index, [])) + piece for index, piece in enumerate(result.pieces)
    ]
    return result


def _chunks(parts: list[str]) -> list[str]:
    chunks: list[str] = []
    for part in parts:
        if chunks and len(chunks[-1]) + len(part) <= PIECE_CHARACTERS:
            chunks[-1] += part
        else:
            chunks.append(part)
    return chunks
