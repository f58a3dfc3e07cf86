"""The CNN and the LSTM of images and spectrograms compute what plain torch does, and refuse what cannot be."""

import pytest
import torch
from torch import nn

from regard.training.baselines.frame_lstm import FrameLSTM, FrameLSTMConfig
from regard.training.baselines.residual_network import ResidualConfig, ResidualNetwork

LABELS = ("yes", "no", "maybe")


def test_the_network_reads_the_mean_of_its_last_stage():
    torch.manual_seed(0)
    model = ResidualNetwork(ResidualConfig(1, (4, 8), (1, 1), LABELS, first_stride=2)).double().eval()
    x = torch.randn(2, 1, 13, 20, dtype=torch.float64)
    stage = model.stages(x)
    assert stage.shape == (2, 8, 4, 5)
    torch.testing.assert_close(model(x), model.scores(stage.mean((2, 3))))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))  # in evaluation an example depends on itself alone


def test_the_lstm_is_torchs_over_stacked_frames():
    torch.manual_seed(0)
    model = FrameLSTM(FrameLSTMConfig(5, 7, 2, LABELS, stacked=2)).double().eval()
    x = torch.randn(3, 1, 5, 9, dtype=torch.float64)  # the ninth frame makes no step
    steps = torch.stack([torch.cat([x[:, 0, :, 2 * i], x[:, 0, :, 2 * i + 1]], 1) for i in range(4)], 1)  # (B, 4, 10)
    for norm, layer in zip(model.norms[:2], model.layers, strict=True):
        assert isinstance(layer, nn.LSTM)
        steps = layer(norm(steps))[0]
    torch.testing.assert_close(model(x), model.scores(model.norms[2](steps).mean(1)))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="first_stride is 3"):
        ResidualConfig(1, (4,), (1,), LABELS, first_stride=3)
    with pytest.raises(ValueError, match="labels is empty"):
        ResidualConfig(1, (4,), (1,), ())
    with pytest.raises(ValueError, match="width is 0: it must be 1 or more"):
        FrameLSTMConfig(5, 0, 1, LABELS)
    with pytest.raises(ValueError, match=r"must be \(B, 1, 5, T\) with T at least 2"):
        FrameLSTM(FrameLSTMConfig(5, 7, 1, LABELS, stacked=2))(torch.zeros(1, 1, 5, 1))
