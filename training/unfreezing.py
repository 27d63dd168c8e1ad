"""What of a model is trained when: frozen parts keep their weights, their statistics and their evaluation mode."""

from collections.abc import Mapping, Sequence

from torch import nn


def unfreeze(groups: Sequence[Mapping[str, nn.Parameter]], stages: int | None) -> None:
    """Train the last `stages` of an encoder's groups of parameters (None: all), and none of the others."""
    frozen = 0 if stages is None else max(0, len(groups) - stages)
    for number, group in enumerate(groups):
        for parameter in group.values():
            parameter.requires_grad_(number >= frozen)
            if number < frozen:
                parameter.grad = None  # an optimiser would go on decaying what has a gradient


def training_mode(model: nn.Module) -> None:
    """Training mode, but for each part whose parameters are all frozen: batch statistics and dropout rest there."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def learning_rate_groups(
    groups: Sequence[Mapping[str, nn.Parameter]], rest: Sequence[nn.Module], scale: float, decay: float
) -> dict[nn.Module, float]:
    """Parts of a model with their factors on the learning rate: 1 for `rest`, the head; for the encoder's groups, as
    modules, `scale` times `decay` a group from the head, which the last group is one away from.

    Bao et al. 2022, "BEiT"; Clark et al. 2020, "ELECTRA".
    """
    count = len(groups)
    rated: dict[nn.Module, float] = {
        nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in group.items()}): scale
        * decay ** (count - number)
        for number, group in enumerate(groups)
    }
    return rated | {nn.ModuleList(rest): 1.0}
