"""The script ``run``, with programs that only pretend to be Python."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "run"
VENV_PYTHON = """#!/bin/sh
# An environment whose pip fails while there is a file "offline".
case "$*" in
*install*) echo "$*" >>pip.log; [ ! -e offline ] || { echo "no route to host" >&2; exit 1; } ;;
*mxhw.build*) echo "built: $*" ;;
esac
"""


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def checkout(tmp_path):
    shutil.copy(SCRIPT, tmp_path / "run")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("torch==1.0\n")
    return tmp_path


def call(folder, *arguments, **environment):
    variables = {"PATH": "/usr/bin:/bin", **environment}
    result = subprocess.run(
        ["/bin/sh", folder / "run", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=variables,
    )
    return result.returncode, result.stdout, result.stderr


def test_parts_that_are_not_there(checkout):
    parts = "choose one of build, text, test, lint, docs"
    assert call(checkout) == (1, "", f"run: error: Part is missing; {parts}\n")
    assert call(checkout, "biuld") == (1, "", f"run: error: There is no part 'biuld': {parts}\n")


def test_python_that_is_too_old(checkout):
    old = write_program(checkout / "old", "#!/bin/sh\nexit 1\n")
    message = f"run: error: PYTHON must name a Python 3.11 to 3.13, and {old} is none\n"
    assert call(checkout, "build", PYTHON=str(old)) == (1, "", message)
    assert not (checkout / ".venv").exists()


def test_python_without_a_way_to_make_an_environment(checkout):
    bare = write_program(checkout / "bare", '#!/bin/sh\n[ "$1" = -c ]\n')
    status, _, err = call(checkout, "build", PYTHON=str(bare))
    assert status == 1
    assert err.startswith(f"run: error: {bare} cannot make a virtual environment: it has neither ")
    assert "package python3-venv" in err
    assert err.count("\n") == 1


def test_installation_that_failed_goes_on(checkout):
    write_program(checkout / ".venv" / "bin" / "python", VENV_PYTHON)
    (checkout / "offline").touch()
    status, out, err = call(checkout, "build", "llama", CXX="sh")
    assert (status, out) == (1, "")
    *_, reason, last = err.splitlines()
    assert reason == "no route to host"
    assert last.startswith("run: error: packages could not be installed into .venv: pip's reason ")
    (checkout / "offline").unlink()
    status, out, err = call(checkout, "build", "llama", CXX="sh")
    assert (status, out) == (0, "built: -m mxhw.build llama\n")
    assert err.startswith("run: installing packages into .venv")
    # What is installed is not installed again, until the requirements change.
    assert call(checkout, "build", CXX="sh") == (0, "built: -m mxhw.build\n", "")
    (checkout / "constraints.txt").write_text("torch==2.0\n")
    assert "installing packages" in call(checkout, "build", CXX="sh")[2]
    assert "torch==2.0" in (checkout / "pip.log").read_text()
