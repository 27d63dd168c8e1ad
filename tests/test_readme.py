"""Every command and every piece of code in the README, run in its order on little data."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli import bandstream

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
BIN = Path(sys.executable).parent

# What is added to a command so that it takes seconds; of a repeated option the last one counts.
SMALL = {
    "synth": "--patches 200",
    "train": "--encoder tu-resnet10t --epochs 2 --batch-size 16 --view-size 32 --threads 1",
    "finetune": "--epochs 1 --batch-size 4 --view-size 32",
    "evaluate": "--view-size 32",
    "bench ingest": "--patches 20 --repeats 1 --peer webdataset",
    "bench loader": "--seconds 0.1 --repeats 1 --batch-size 16 --view-size 32",
    "bench.synthetic_task": "--patches 200 --seeds 1 --epochs 0",
}


def lines() -> list[tuple[str, str]]:
    """(language, one command or one whole piece of Python), in the README's order."""
    found = []
    for language, block in BLOCKS:
        commands = [line.split("#")[0].strip() for line in block.splitlines()] if language == "bash" else [block]
        found += [(language, command) for command in commands if command]
    return found


def shortened(words: list[str]) -> list[str]:
    told = " ".join(words)
    for name, options in SMALL.items():
        if f" {name} " in f" {told} ".replace("train.py", "train"):
            if name == "finetune" and "scratch" in words:
                options += " --encoder tu-resnet10t"
            return [*words, *options.split()]
    return words


@pytest.mark.filterwarnings("ignore")
def test_everything_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipes", "train.py", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    ran: set[str] = set()
    for language, text in lines():
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        words = shortened(shlex.split(text))
        ran.add(words[0])
        if words[0] == "make":
            planned = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=True)
            assert {"demo": "bandstream demo", "test": "pytest", "proofs": "tests.proofs"}[words[1]] in planned.stdout
        elif words[0] == "source":
            assert words[1] == ".venv/bin/activate" and (BIN / "activate").is_file()
        elif words[0] == "bandstream" and "--help" not in words:
            bandstream.main(words[1:], prog_name="bandstream", standalone_mode=False)
        else:
            words = ["2" if words[0] == "torchrun" and word == "8" else word for word in words]
            result = subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{text}\n{result.stderr[-2000:]}"
    assert ran == {"make", "source", "bandstream", "torchrun", "python"}
    assert (tmp_path / "runs" / "report.html").stat().st_size > 100_000
    assert (tmp_path / "runs" / "simclr8" / "encoder.safetensors").is_file()


def test_every_link_in_it_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
