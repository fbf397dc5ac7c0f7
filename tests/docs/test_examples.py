import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mxhw import build, run
from mxhw.compiler.pipeline import find_step

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
PACKAGES = ["mxhw.arith", "mxhw.dataflow", "mxhw.lut"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_page_shows_the_example(path):
    page = (DOCS / "how-to" / "use-a-unit.md").read_text("utf-8")
    assert f"```python\n{path.read_text('utf-8')}```" in page


def names_of(package):
    return [(package, name) for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), [pair for p in PACKAGES for pair in names_of(p)])
def test_public_name_imports(package, name):
    namespace = {}
    exec(f"from {package} import {name} as thing", namespace)
    assert getattr(namespace["thing"], "__name__", name) == name


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_name_is_refused(package):
    with pytest.raises(ImportError, match="NoSuchUnit"):
        exec(f"from {package} import NoSuchUnit", {})


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_sorted_and_listed(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_packages_load_no_torch():
    # Lists and help of the command line import units; PyTorch takes a second.
    code = f"import sys, {', '.join(PACKAGES)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_units_page_names_every_unit():
    page = (DOCS / "reference" / "units.md").read_text("utf-8")
    for package, name in [pair for p in PACKAGES for pair in names_of(p)]:
        assert re.search(rf"`{name}\b", page), f"{package}.{name} is not in units.md"


def text_of(page):
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page)):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


PAGES = [*sorted((DOCS / "how-to").glob("*.md")), *sorted((DOCS / "tutorial").glob("*.md"))]
# The page of a unit is run as a file; that of debugging shows parts of a longer session.
RUN = [page for page in PAGES if page.name not in ("use-a-unit.md", "debugging.md")]


def blocks_of(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_code_on_a_page_runs(page, capsys):
    namespace = {}
    for block in blocks_of(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


def lines():
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        for line in "".join(blocks_of(page, "sh")).replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield page, words


def commands(part, module):
    """Arguments of a command, as the script ``run`` and as Python give it to a module."""
    for page, words in lines():
        if words[:2] == ["./run", part]:
            yield page, words[2:]
        elif words[:3] == ["python", "-m", module]:
            yield page, words[3:]


@pytest.mark.parametrize(("page", "words"), list(commands("build", "mxhw.build")), ids=str)
def test_commands_on_a_page_are_right(page, words, capsys):
    # Those that only tell something are run; of the others the options are read.
    model = words[0]
    bundled = "." not in model and not model.endswith("/")
    if bundled and {"--estimate", "--list-boards", "--list-models"} & set(words):
        assert build.main(words) == 0
        assert len(capsys.readouterr().out.splitlines()) > 3
    else:
        with build.command.make_context("mxhw.build", [*words]) as context:
            assert context.params["model"] == ("llama" if bundled else model)
            step = context.params["stop_after"]
            assert step is None or find_step(step)


@pytest.mark.parametrize(("page", "words"), list(commands("text", "mxhw.run")), ids=str)
def test_commands_for_text_are_right(page, words):
    with run.command.make_context("mxhw.run", [*words]) as context:
        assert context.params["model"] == words[0]


@pytest.mark.parametrize(("page", "words"), list(lines()), ids=str)
def test_commands_name_what_there_is(page, words):
    if words[0] == "./run":
        assert f"\n{words[1]})\n" in (ROOT / "run").read_text("utf-8")
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in ("pip", "git", "cd", "openFPGALoader"), words
