"""The layers of an encoder in their order, for what treats late ones otherwise than early ones."""

import re

from torch import nn

_NUMBERED = re.compile(r"_*(?:(?:layer|stage|block|denseblock|patch_embed|norm|s)s?[._]?)?(\d+)$")
_LISTS = {"layers", "stages", "blocks"}


def layer_groups(net: nn.Module) -> list[list[nn.Parameter]]:
    """The trainable parameters of an encoder's `net`, from input to output, a list a stage, the stem first.

    A stage is what the network's own definition numbers: `layer4` of a ResNet, a stage of a ConvNeXt, a block of a
    vision transformer. What comes before the first belongs to the stem (with class token and positions), what comes
    after one, such as a last norm, to that one. A network without numbers has a group a child.
    """
    children = list(net.named_children())
    while len(children) == 1 and not list(net.parameters(recurse=False)):
        net = children[0][1]
        children = list(net.named_children())
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
    ordered = [[p for p in groups[number] if p.requires_grad] for number in sorted(groups)]
    return [group for group in ordered if group]
