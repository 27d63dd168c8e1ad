"""Every command and every piece of code in the README, run in its order on little data."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli import bandstream
from tests import readme_archives, storage

ROOT = Path(__file__).parent.parent
BLOCKS, FURTHER_BLOCKS = (
    re.findall(r"^```(bash|python)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    for part in (ROOT / "README.md").read_text().split("### Pretrain")
)
"""Those about archives, and those that begin with the shard set made there."""
BIN = Path(sys.executable).parent

# What is added to a command so that it takes seconds; of a repeated option the last one counts.
SMALL = {
    "bench train": "--encoder cnn --batch-size 8 --view-size 32 --seconds 0.1 --repeats 1",
    "synth": "--patches 200",
    "plan": "--shard-samples 64",
    "train": "--encoder tu-resnet10t --epochs 1 --batch-size 16 --view-size 32 --threads 1",
    "finetune": "--epochs 1 --batch-size 4 --view-size 32",
    "evaluate": "--view-size 32",
    "bench ingest": "--patches 20 --repeats 1 --peer webdataset",
    "bench loader": "--alone --patches 40 --seconds 0.1 --repeats 1 --batch-size 16 --view-size 32",
    "bench.synthetic_task": "--patches 200 --seeds 1 --epochs 0",
}


SPECS = re.findall(r"^```toml\n# (\S+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
"""Files that the README shows: name and content."""

BEGIN = r"bandstream (synth .*|ingest bigearthnet data/BigEarthNet data/shards)"
"""The commands that make that shard set."""


def lines(blocks: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(language, one command or one whole piece of Python), in the README's order."""
    found = []
    for language, block in blocks:
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


def run_all(told: list[tuple[str, str]], left_running: list[subprocess.Popen[bytes]]) -> set[str]:
    """Run each; the first words of those that ran. What goes on in the background is put into the list."""
    ran = set()
    for language, text in told:
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
        elif words[-1] == "&":
            command = [BIN / words[0], *words[1:-1]]
            left_running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True))
        elif words[0] == "bandstream" and "--help" not in words:
            bandstream.main(words[1:], prog_name="bandstream", standalone_mode=False)
            if words[1] == "synth":
                readme_archives.pack_bigearthnet(Path("data"))
        else:
            words = ["2" if words[0] == "torchrun" and word == "8" else word for word in words]
            result = subprocess.run([BIN / words[0], *words[1:]], capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{text}\n{result.stderr[-2000:]}"
    return ran


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what of a checkout the commands name."""
    for name in ("recipes", "train.py", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_everything_about_archives_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme_archives.make(checkout / "data")
    left_running: list[subprocess.Popen[bytes]] = []
    with storage.served(checkout / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        try:
            ran = run_all(lines(BLOCKS), left_running)
        finally:
            for process in left_running:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert "dataset.json" in server.names("bigearthnet")
    assert ran == {"make", "source", "bandstream", "dask"}
    for name in ("shards", "from-tars", "shards-dask"):
        assert (checkout / "data" / name / "train-000000.tar").read_bytes() == (
            checkout / "data" / "shards" / "train-000000.tar"
        ).read_bytes()


def write_small(folder: Path) -> None:
    """The README's specs with one seed, a smaller encoder and an epoch of a few steps."""
    knobs = 'knobs = { epochs = 1, batch_size = 4, min_steps = 0, "view.size" = 32 }'
    for name, content in SPECS:
        content, seeds = re.subn(r"^seeds = .*$", "seeds = [0]", content, flags=re.MULTILINE)
        content = content.replace("label_fractions = [0.05, 1.0]", "label_fractions = [1.0]")
        content, encoders = re.subn(r'^encoder = ".*"$', 'encoder = "tu-resnet10t"', content, flags=re.MULTILINE)
        content, tuned = re.subn(r"^(finetune = .*)$", rf"\1\n{knobs}", content, flags=re.MULTILINE)
        assert seeds == encoders == tuned == 1
        (folder / name).write_text(content)


@pytest.mark.filterwarnings("ignore")
def test_everything_else_runs(checkout: Path) -> None:
    write_small(checkout)
    begin = [each for each in lines(BLOCKS) if re.fullmatch(BEGIN, each[1])]
    assert len(begin) == 2
    assert run_all(begin + lines(FURTHER_BLOCKS), []) == {"bandstream", "torchrun", "make", "python"}
    assert (checkout / "runs" / "report.html").stat().st_size > 100_000
    assert (checkout / "runs" / "compare" / "tables" / "scores.csv").is_file() and len(SPECS) == 1
    assert (checkout / "runs" / "simclr8" / "encoder.safetensors").is_file()


def test_every_link_in_it_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
