"""Meeting other bands by name: the input weights of an encoder's first convolution, picked, ordered and rescaled."""

from collections.abc import Sequence

import torch

from shards.errors import BandstreamError


def stem_weight(state: dict[str, torch.Tensor], in_channels: int) -> str:
    """The name of the first convolution's weight (out, in_channels, k, k). Raises BandstreamError if there is none."""
    for name, tensor in state.items():
        if tensor.ndim == 4 and tensor.shape[1] == in_channels:
            return name
    raise BandstreamError(f"the encoder has no convolution over {in_channels} bands: its weights are of another model")


def adapt_stem(
    state: dict[str, torch.Tensor], trained: Sequence[str], wanted: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Weights for the bands `wanted`, in that order, out of weights for the bands `trained`.

    Fewer bands are scaled by len(trained) / len(wanted), which keeps the size of the activations for standardised
    input. Raises BandstreamError naming every band that the encoder never saw.
    """
    if list(trained) == list(wanted):
        return dict(state)
    unknown = [band for band in wanted if band not in trained]
    if unknown:
        raise BandstreamError(
            f"the encoder never saw {', '.join(unknown)}: it was trained on {', '.join(trained)}; "
            "leave those bands out, or pretrain with them"
        )
    name = stem_weight(state, len(trained))
    columns = [list(trained).index(band) for band in wanted]
    return state | {name: state[name][:, columns] * (len(trained) / len(wanted))}
