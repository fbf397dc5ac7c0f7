import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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
    page = (DOCS / "use-a-unit.md").read_text("utf-8")
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
    page = (DOCS / "units.md").read_text("utf-8")
    for package, name in [pair for p in PACKAGES for pair in names_of(p)]:
        assert re.search(rf"`{name}\b", page), f"{package}.{name} is not in units.md"


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
