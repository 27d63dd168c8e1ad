"""Encoders to and from the Hugging Face Hub, or any server or folder of its layout; huggingface_hub is optional."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.card import CARD, model_card
from models.description import DESCRIPTION, read_description
from shards import atomic
from shards.errors import BandstreamError

WEIGHTS = "encoder.safetensors"
REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def repository(source: str | Path) -> tuple[str, str | None] | None:
    """(`user/name`, revision) where that is what a source is, None where it is a folder.

    Only a string of exactly that shape, of which no folder here has the name, is one: `./user/name` is always a folder.
    """
    found = REPOSITORY.fullmatch(source) if isinstance(source, str) else None
    if not found or Path(source).exists():
        return None
    return found["repo"], found["revision"]


def local_folder(source: str | Path) -> Path:
    """The folder of an encoder: `source` itself, or where its repository (`user/name`, `user/name@revision`) now lies.

    A folder that huggingface_hub keeps of a whole repository (`models--user--name`, with snapshots) is understood too:
    its newest revision. Raises BandstreamError where nothing can be fetched.
    """
    told = repository(source)
    if told is None:
        folder = Path(source)
        if not (folder / DESCRIPTION).exists() and (folder / "snapshots").is_dir():
            main = folder / "refs" / "main"
            kept = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
            return folder / "snapshots" / main.read_text().strip() if main.is_file() else (kept or [folder])[-1]
        return folder
    repo, revision = told
    api = _api(f"{source} is no folder here, and to fetch it from the Hub")
    unreachable = _unreachable(api, repo)
    try:
        paths = [
            Path(api.hf_hub_download(repo, name, revision=revision, local_files_only=bool(unreachable)))
            for name in (DESCRIPTION, WEIGHTS)
        ]
    except Exception as error:  # the network stack raises its own kinds
        raise BandstreamError(
            f"{source} is no folder here and could not be fetched from {api.endpoint} "
            f"({unreachable or _said(error)}): check the name, HF_TOKEN if it is private, and the network"
        ) from None
    return paths[0].parent


def push_encoder(
    run: Path | str,
    destination: str | Path,
    *,
    licence: str | None = None,
    scores: Mapping[str, float] | None = None,
    private: bool = False,
) -> str:
    """Give a run's encoder away: weights, description and card into a folder, or into a repository `user/name`.

    `licence` and `scores` are put down in description and card beside what the run recorded. Returns where it now is:
    the folder, or the repository's address. Raises BandstreamError where the run holds no encoder or the Hub refuses.
    """
    run = Path(run)
    try:
        info = read_description(run)
        weights = run / WEIGHTS
        weights.stat()
    except FileNotFoundError as error:
        raise BandstreamError(
            f"{run} holds no encoder ({Path(error.filename).name} is missing): name the folder of a finished run"
        ) from None
    told = {"licence": licence or info.licence, "scores": info.scores | dict(scores or {})}
    info = type(info).model_validate(info.model_dump() | told)
    target = repository(destination)
    if target is None:
        folder = Path(destination)
        if folder.resolve() != run.resolve():
            folder.mkdir(parents=True, exist_ok=True)
            with weights.open("rb") as source, atomic.replacing(folder / WEIGHTS) as copy:
                shutil.copyfileobj(source, copy)
        atomic.write_text(folder / CARD, model_card(info))
        atomic.write_json(folder / DESCRIPTION, info.model_dump(mode="json"))
        return str(folder)
    repo, revision = target
    api = _api(f"to push to {destination}")
    with tempfile.TemporaryDirectory() as scratch:
        push_encoder(run, Path(scratch), licence=licence, scores=scores)
        try:
            api.create_repo(repo, exist_ok=True, private=private)
            api.upload_folder(
                repo_id=repo, folder_path=scratch, revision=revision, commit_message=f"{info.encoder} by bandstream"
            )
        except Exception as error:  # as above
            raise BandstreamError(
                f"{destination} could not be pushed to {api.endpoint} ({_said(error)}): check that HF_TOKEN may write "
                "there, and the network; to copy to a folder of that name write ./ before it"
            ) from None
    return f"{api.endpoint}/{repo}"


def _api(why: str) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise BandstreamError(f"{why}, huggingface_hub is needed: pip install huggingface_hub") from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # as it is now, not as it was at import


@contextmanager
def quietly() -> Iterator[None]:
    """Fetch without huggingface_hub's own lines about each of its attempts: an error says it once."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _unreachable(api: Any, repo: str) -> str:
    """What keeps the server from being reached, if anything does: a download would try for half a minute, and say so
    a dozen times."""
    try:
        api.model_info(repo, timeout=10)
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
            return _said(error)
    return ""  # it answers, whatever that is


def _said(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"
