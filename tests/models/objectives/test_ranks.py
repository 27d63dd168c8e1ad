"""Two processes, each with half of a batch, against one with the whole: all objectives in one run."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.models.objectives import ranks


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    arguments = (2, str(folder / "meet"), str(folder / "out"))
    mp.start_processes(ranks.one_rank, arguments, nprocs=2, start_method="spawn")
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def of_one() -> list[dict[str, torch.Tensor]]:
    return ranks.run()


@pytest.mark.parametrize("case", range(len(ranks.CASES)), ids=[f"{name}-{knobs}" for name, knobs, _ in ranks.CASES])
def test_two_ranks_are_one_joined_batch(of_two, of_one, case):
    wanted = of_one[case]
    for found in (of_two[0][case], of_two[1][case]):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-5, atol=1e-5, msg=lambda told, key=key: f"{key}: {told}"
            )
    sizes = sorted(value.abs().max().item() for key, value in wanted.items() if key.startswith("2 gradient"))
    # one vanishes: VICReg does not see the last bias, which moves all embeddings alike
    assert sizes[1] > 1e-4, "gradients too small to compare"
