import re
from pathlib import Path

import pytest

from mxhw.compiler.workspace import (
    MARKER,
    BuildFolder,
    StepRecord,
    digest_of,
    file_digest,
    source_digest,
)
from mxhw.errors import UserError


def commit(folder: BuildFolder, step: str, key: str, files: dict[str, str]) -> StepRecord:
    with folder.staging() as staging:
        for name, content in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return folder.commit(step, StepRecord(key, 1.5, 10.0, {}), staging)


@pytest.fixture
def folder(tmp_path):
    with BuildFolder(tmp_path / "out") as folder:
        yield folder


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    with BuildFolder(tmp_path / "a" / "b") as folder:
        assert (folder.path / MARKER).is_file()


def test_an_empty_folder_is_taken(tmp_path):
    with BuildFolder(tmp_path):
        assert (tmp_path / MARKER).is_file()


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError) as caught:
        BuildFolder(tmp_path)
    assert str(caught.value) == (
        f"Folder {tmp_path} holds something that is not a build of mxhw and was left as it is; "
        f"choose another with --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    path = tmp_path / "out"
    path.write_text("x")
    expected = f"^Build folder {re.escape(str(path))} is a file; choose another with --out$"
    with pytest.raises(UserError, match=expected):
        BuildFolder(path)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "out"
    expected = (
        f"^Build folder {re.escape(str(path))} cannot be written: Not a directory; "
        f"choose another with --out$"
    )
    with pytest.raises(UserError, match=expected):
        BuildFolder(path)


def test_two_builds_at_once_are_refused(folder):
    expected = (
        f"^Build folder {re.escape(str(folder.path))} is in use by another build; wait for it, or "
        f"choose another folder with --out$"
    )
    with pytest.raises(UserError, match=expected):
        BuildFolder(folder.path)
    folder.close()
    BuildFolder(folder.path).close()


def test_a_finished_step_is_valid_in_the_next_build(folder):
    record = commit(folder, "one", "key", {"a.txt": "A", "sub/b.txt": "B"})
    assert record.files == {
        "a.txt": file_digest(folder.path / "a.txt"),
        "sub/b.txt": file_digest(folder.path / "sub" / "b.txt"),
    }
    folder.close()
    with BuildFolder(folder.path) as again:
        assert again.valid("one", "key") == record
        assert again.files(["one", "two"]) == [Path("a.txt"), Path("sub/b.txt")]


@pytest.mark.parametrize("change", ["edit", "delete", "key", "step"])
def test_a_step_is_not_valid_after_a_change(folder, change):
    commit(folder, "one", "key", {"a.txt": "A"})
    if change == "edit":
        (folder.path / "a.txt").write_text("other")
    elif change == "delete":
        (folder.path / "a.txt").unlink()
    step, key = ("two" if change == "step" else "one"), ("new" if change == "key" else "key")
    assert folder.valid(step, key) is None


def test_unreadable_records_cost_a_rebuild_only(folder):
    commit(folder, "one", "key", {"a.txt": "A"})
    for content in ("", "[]", "{broken", '{"one": 3}', '{"one": {"key": "key"}}'):
        (folder.path / ".mxhw-steps.json").write_text(content)
        folder.close()
        folder = BuildFolder(folder.path)
        assert folder.valid("one", "key") is None
    folder.close()


def test_an_interrupted_step_leaves_nothing(folder):
    commit(folder, "one", "key", {"a.txt": "A"})

    def interrupted() -> None:
        with folder.staging() as staging:
            (staging / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert folder.valid("one", "key") is not None
    assert {path.name for path in folder.path.iterdir()} == {MARKER, ".mxhw-steps.json", "a.txt"}


def test_staging_of_a_killed_build_is_removed(folder):
    left = folder.path / ".mxhw-staging"
    left.mkdir()
    (left / "half").write_text("x")
    folder.close()
    with BuildFolder(folder.path):
        assert not left.exists()


def test_a_step_that_runs_again_replaces_its_files_and_no_others(folder):
    commit(folder, "one", "1", {"a.txt": "A", "old/only.txt": "O"})
    commit(folder, "two", "1", {"b.txt": "B"})
    (folder.path / "notes.txt").write_text("mine")
    commit(folder, "one", "2", {"a.txt": "new"})
    names = {path.name for path in folder.path.iterdir() if not path.name.startswith(".")}
    assert names == {"a.txt", "b.txt", "notes.txt"}
    assert (folder.path / "a.txt").read_text() == "new"
    assert folder.valid("two", "1") is not None


def test_logs_of_a_failed_step_are_kept(folder):
    with folder.staging() as staging:
        (staging / "tool.log").write_text("why")
        (staging / "half.bit").write_text("x")
        kept = folder.keep_logs(staging)
    assert kept == [folder.path / "failed-tool.log"]
    assert kept[0].read_text() == "why"
    assert not (folder.path / "half.bit").exists()


def test_json_files(folder):
    folder.write_json("x.json", {"a": [1, None]})
    assert folder.read_json("x.json") == {"a": [1, None]}
    assert not list(folder.path.glob("*.partial"))


def test_digests_depend_on_the_value_and_not_on_its_order():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])


def test_digests_of_the_package():
    whole = source_digest()
    parts = source_digest(("boards", "formats.py"))
    assert len({whole, parts, source_digest(("formats.py",))}) == 3
