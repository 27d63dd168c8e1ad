"""The layers of an encoder in their order, for what treats late ones otherwise than early ones."""

import re

from torch import nn

_NUMBERED = re.compile(r"_*(?:(?:layer|stage|block|denseblock|patch_embed|norm|s)s?[._]?)?(\d+)$")
_LISTS = {"layers", "stages", "blocks"}


def layer_groups(net: nn.Module) -> list[dict[str, nn.Parameter]]:
    """The trainable parameters of an encoder's `net`, by name, from input to output, a group a stage, the stem first.

    A stage is what the network's own definition numbers: `layer4` of a ResNet, a stage of a ConvNeXt, a block of a
    vision transformer. What comes before the first belongs to the stem (with class token and positions), what comes
    after one, such as a last norm, to that one. A network without numbers has a group a child.
    """
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    while len(children := _trained(net)) == 1 and not list(net.parameters(recurse=False)):
        net = children[0][1]
    groups: dict[int, list[nn.Parameter]] = {-1: list(net.parameters(recurse=False))}
    for name, child in children:
        if name.lstrip("_") in _LISTS and isinstance(child, nn.Sequential | nn.ModuleList):
            for number, part in enumerate(child):
                groups.setdefault(number, []).extend(part.parameters())
            continue
        found = _NUMBERED.match(name)
        number = int(found[1]) if found else max(groups)
        if "norm" in name and number not in groups:
            number = max(groups)
        groups.setdefault(number, []).extend(child.parameters())
    if len(groups) == 1:
        groups |= {number: list(child.parameters()) for number, (_, child) in enumerate(children)}
        groups[-1] = list(net.parameters(recurse=False))
    ordered: list[dict[str, nn.Parameter]] = []
    for number in sorted(groups):
        trained = {names[id(parameter)]: parameter for parameter in groups[number] if parameter.requires_grad}
        if ordered and all(parameter.ndim == 1 for parameter in trained.values()):  # a norm with a number, as in VGG
            ordered[-1] |= trained
        elif trained:
            ordered.append(trained)
    return ordered


def _trained(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in net.named_children() if any(p.requires_grad for p in child.parameters())]
