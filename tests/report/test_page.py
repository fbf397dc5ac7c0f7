import json
import re
from html.parser import HTMLParser

import pytest

from mxhw.compiler.report import make_report
from mxhw.errors import UserError
from mxhw.report import PAGE_FILE, __main__, gather, read_folder, render
from tests.report import sample


class Outline(HTMLParser):
    """Text by section, and every address that the page names."""

    def __init__(self, page):
        super().__init__()
        self.sections, self.addresses, self.ids = {}, [], []
        self._section, self._skip = None, False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.addresses += [attributes[key] for key in ("src", "href") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "section":
            self._section = attributes["id"]
            self.sections[self._section] = ""
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        if tag == "section":
            self._section = None

    def handle_data(self, data):
        if self._section and not self._skip:
            self.sections[self._section] += data


def page_of(path, **changes):
    return render(read_folder(sample.write_folder(path, **changes)))


def test_page_holds_the_figures(tmp_path):
    page = page_of(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    sections = Outline(page).sections
    assert list(sections) == [
        "dataflow",
        "time",
        "speed",
        "accuracy",
        "resources",
        "floorplan",
        "clock",
        "build",
    ]
    assert f"{report['tokens_per_second']:,.0f}" in sections["speed"]
    assert f"{report['cycles_per_token']:,}" in sections["speed"]
    assert "6.2100" in sections["accuracy"]
    assert "× 1.0016 ± 0.0008" in sections["accuracy"]
    assert "layer 2" in sections["accuracy"]
    assert "66.50 MHz" in sections["clock"]
    assert "Nonlinear functions" in sections["accuracy"]
    assert "exp2 32, reciprocal 32" in sections["accuracy"]
    norms = [row for row in report["nonlinear"] if row["operator"] == "rms_norm"]
    assert f"{100 * norms[0]['area_share']:.1f}\u00a0%" in sections["accuracy"]
    for norm in norms:
        assert f"{100 * norm['error_share']:.3f}\u00a0%" in sections["accuracy"]
    assert "key/value heads" in sections["build"]
    assert "design.decoder.norm.total" in sections["clock"]
    assert "not measured" not in "".join(sections.values())
    assert page.startswith("<!doctype html>")


def test_page_needs_nothing_else(tmp_path):
    page = page_of(tmp_path)
    outline = Outline(page)
    local = [a for a in outline.addresses if not a.startswith("data:")]
    assert all(a.startswith("#") and a[1:] in outline.ids for a in local)
    assert len(set(outline.ids)) == len(outline.ids)
    assert not re.search(r"https?://|@import|url\(", page)


def test_every_node_has_its_facts(tmp_path):
    page = page_of(tmp_path)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    nodes = data["nodes"]
    assert sum(node["multiply"] + node["wait"] for node in nodes) == data["cycles"]
    for node in nodes:
        assert node["source"].startswith("llama.py:")
        assert node["code"]
        assert node["error"] is not None
        assert node["units"]
        assert all(unit in data["units"] for unit in node["units"])
    shown = [index for members in data["boxes"].values() for index in members]
    assert sorted(shown) == list(range(len(nodes)))


@pytest.mark.parametrize(
    ("upto", "empty"),
    [
        ("plan", {"time", "speed", "accuracy", "floorplan", "clock"}),
        ("golden", {"time", "speed", "floorplan", "clock"}),
        ("simulate", {"floorplan", "clock"}),
        ("synthesise", {"floorplan", "clock"}),
    ],
)
def test_what_was_not_measured_is_said(tmp_path, upto, empty):
    sections = Outline(page_of(tmp_path, upto=upto)).sections
    missing = {name for name, text in sections.items() if "not measured" in text}
    assert missing == empty


def test_a_build_that_failed_at_once():
    report = make_report(sample.SETTINGS, {}, {}, 0.0, "step plan: Model <x> is missing")
    page = render(gather(sample.Path(), report, {}))
    assert "step plan: Model &lt;x&gt; is missing" in page


def test_text_is_escaped(tmp_path):
    page = page_of(tmp_path, text="</script><script>alert(1)</script> & <b>")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_command_line(tmp_path, capsys):
    folder = sample.write_folder(tmp_path / "build")
    assert __main__.main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / PAGE_FILE)
    assert (folder / PAGE_FILE).read_text("utf-8") == render(read_folder(folder))
    other = tmp_path / "other.html"
    assert __main__.main([str(folder), "--out", str(other)]) == 0
    assert other.is_file()


def test_errors_of_the_command_line(tmp_path, capsys):
    assert __main__.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"mxhw: error: Folder {tmp_path} is not a build of mxhw\n"
    folder = sample.write_folder(tmp_path / "build")
    assert __main__.main([str(folder), "--out", str(tmp_path / "no" / "x.html")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert __main__.main([]) == 1
    assert "Missing argument" in capsys.readouterr().err


def test_folders_that_cannot_be_shown(tmp_path):
    with pytest.raises(UserError, match=r"^Folder .* holds no report.json: build first "):
        read_folder(tmp_path)
    folder = sample.write_folder(tmp_path / "build")
    (folder / "graph.json").write_text("{")
    with pytest.raises(UserError, match=r"^File .*graph.json cannot be read as JSON: "):
        read_folder(folder)
    (folder / "graph.json").write_text("[1]")
    with pytest.raises(UserError, match=r"graph.json must hold a JSON object, not a list$"):
        read_folder(folder)
