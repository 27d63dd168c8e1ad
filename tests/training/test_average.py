"""The average of an encoder's weights, against a loop over its definition."""

import torch
from torch import nn

from training.average import Average


def test_the_average_is_its_definition():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    average = Average(model, 0.8)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for t in range(30):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(4, 2, 5, 5))
        average.update(model)
        decay = min(0.8, (1 + t) / (10 + t))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
            else:
                expected[name] = value.double()
        if t == 11:  # resumed
            later = Average(model, 0.8)
            later.load_state_dict(average.state_dict())
            average = later
    for name, value in average.encoder.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not average.encoder.training and not any(p.requires_grad for p in average.encoder.parameters())
