"""The command line as a user meets it: quick help, one-line errors, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.commands import COMMANDS as BENCHES
from cli import COMMANDS

ROOT = Path(__file__).parent.parent


def bandstream(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("bandstream")
    return subprocess.run([program, *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_help_lists_every_command(tmp_path):
    result = bandstream("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["bench", name] for name in BENCHES], ids=" ".join)
def test_each_command_explains_itself_without_importing_torch(words):
    code = (
        "import sys; from cli import bandstream\n"
        f"try: bandstream([*{words!r}, '--help'], standalone_mode=False)\n"
        "finally: assert not {'torch', 'nvidia.dali', 'sklearn', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage:")


def test_wrong_usage_exits_with_2():
    assert bandstream("nonsense").returncode == 2
    result = bandstream("verify")
    assert result.returncode == 2
    assert "Missing argument" in result.stderr


def test_failed_work_is_one_line_and_exits_with_1(tmp_path):
    result = bandstream("verify", str(tmp_path))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "dataset.json" in result.stderr
    assert "Traceback" in bandstream("--debug", "verify", str(tmp_path)).stderr


def test_version():
    assert bandstream("--version").stdout.startswith("bandstream, version 0")
