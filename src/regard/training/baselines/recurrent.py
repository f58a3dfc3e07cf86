"""Recurrent layers and language models: what Transformers are compared with.

A layer is x + dropout(cell(norm(x))): with norms and residuals deep stacks of cells train as Transformers do.

    B | batch entries    L | positions    d | d_model    V | vocab_size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from regard.training.errors import TrainingError

Cell = Literal["rnn", "lstm", "gru"]
"""Elman's network with tanh, long short-term memory (doi 10.1162/neco.1997.9.8.1735), and gated recurrent units (arXiv
1406.1078)."""
CELLS: dict[Cell, type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
GATES: dict[Cell, int] = {"rnn": 1, "lstm": 4, "gru": 3}
"""Matrices side by side in each of the two products of a cell."""

State = tuple[Tensor, ...]
"""What a layer hands on: (1, B, d) for "rnn" and "gru", two of them for "lstm"."""


def cell_layer(cell: Cell, width: int, hidden: int, *, both: bool = False) -> nn.RNN | nn.LSTM | nn.GRU:
    """One layer of cells over (B, L, width).

    Every gate's input matrix is Xavier-uniform and its recurrent one orthogonal (arXiv 1312.6120); biases are 0, but 1
    for what an LSTM keeps (proceedings.mlr.press/v37/jozefowicz15.html).

    Args:
        cell: its kind.
        width: of the input.
        hidden: of the state.
        both: read in both directions; the output is then 2 hidden wide.

    Raises:
        TrainingError: if cell is of no known kind, or a size is less than 1.
    """
    if cell not in CELLS:
        raise TrainingError(f"cell is {cell!r}; it may be one of {', '.join(map(repr, CELLS))}")
    if width < 1 or hidden < 1:
        raise TrainingError(f"width is {width} and hidden {hidden}; both may be 1 or more")
    layer = CELLS[cell](width, hidden, batch_first=True, bidirectional=both)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            gates = parameter.chunk(GATES[cell])
            if name.startswith("bias"):
                parameter.zero_()
                if cell == "lstm" and name.startswith("bias_ih"):
                    gates[1].fill_(1.0)  # input, forget, cell, output
                continue
            draw = nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_
            for gate in gates:
                draw(gate)
    return layer


class RecurrentStack(nn.Module):
    """Layers of one direction, each normed before and added to its input after.

    Args:
        cell: the kind of every layer.
        d_model: width of input, states and output.
        layers: how many, at least 1.
        dropout: probability of zeroing a feature of a layer's output in training.

    Raises:
        TrainingError: if layers is less than 1; see also `cell_layer`.
    """

    def __init__(self, cell: Cell, d_model: int, layers: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if layers < 1:
            raise TrainingError(f"layers is {layers}; it may be 1 or more")
        self.cells = nn.ModuleList(cell_layer(cell, d_model, d_model) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor, list[State]]:
        """x (B, L, d) and the states before it, zeros unless given → output (B, L, d) and the states after it."""
        after: list[State] = []
        for i, (cell, norm) in enumerate(zip(self.cells, self.norms, strict=True)):
            y, state = run_cell(cell, norm(x), None if states is None else states[i])
            x = x + self.dropout(y)
            after.append(state)
        return x, after


def run_cell(layer: nn.Module, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """One layer over x (B, L, width), from a state on; its output (B, L, hidden) and the state after it."""
    y, found = layer(x, state[0] if state is not None and len(state) == 1 else state)
    return y, found if isinstance(found, tuple) else (found,)


def run_packed(layer: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    """One layer over right-padded x (B, L, width), of which lengths (B,) are real: output (B, L, …), 0 at padding."""
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    found = cast(PackedSequence, layer(packed)[0])
    return pad_packed_sequence(found, batch_first=True, total_length=x.shape[1])[0]


@dataclass(frozen=True)
class RecurrentConfig:
    """The sizes of a `RecurrentLanguageModel`."""

    vocab_size: int
    cell: Cell = "lstm"
    d_model: int = 256  # width of embedding and states
    layers: int = 2
    dropout: float = 0.0  # of the embedding and of every layer's output
    tied: bool = True  # the embedding also makes the scores (arXiv 1608.05859)


class RecurrentLanguageModel(nn.Module):
    """Pieces in, scores of the next piece out, as `regard.models.llama.Llama` has it.

    The embedding is N(0, 0.02) if it is tied, else N(0, 1).
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.tied:
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.stack = RecurrentStack(config.cell, config.d_model, config.layers, dropout=config.dropout)
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def read(self, ids: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor, list[State]]:
        """Pieces (B, L) after what the states hold → last hidden states (B, L, d), and the states after them."""
        x, after = self.stack(self.dropout(self.embedding(ids)), states)
        return self.norm(x), after

    def hidden(self, ids: Tensor) -> Tensor:
        """Pieces (B, L), each row a text from its beginning → last hidden states (B, L, d)."""
        return self.read(ids)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) → scores of the next piece (..., V), before softmax."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, L) → scores of each next piece (B, L, V)."""
        return self.logits(self.hidden(ids))
