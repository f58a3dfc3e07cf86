"""How a checkpoint's tensors become a model's parameters, and back: one table of invertible rules a family.

A rule names one of our parameters, or all those of a layer with {} for its number, and where the checkpoint keeps
it. Read one way the table loads a checkpoint, read the other way it writes one. A name without ".weight" or ".bias"
stands for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


class TensorError(ValueError):
    """A checkpoint's tensors are not those that its config asks for."""


class NotFiniteError(ValueError):
    """Tensors hold NaN or infinities."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is in a file still.

    Args:
        shape: of it.
        dtype: of its numbers.
        read: its numbers, which may lie in the file still: who keeps them makes a copy, or the file stays in memory.
    """

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def equals(self, other: StoredTensor) -> bool:
        """Whether shape, dtype and all numbers are the same."""
        return self is other or (
            self.shape == other.shape and self.dtype == other.dtype and torch.equal(self.read(), other.read())
        )


@dataclass(frozen=True)
class Rename:
    """The same tensor under another name.

    Args:
        ours: the parameter's name.
        theirs: the checkpoint's.
        transposed: matrices are stored (in, out), as GPT-2 does, and not (out, in).
    """

    ours: str
    theirs: str
    transposed: bool = False

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The checkpoint's names."""
        return (self.theirs,)

    def to_theirs(self, tensor: Tensor) -> list[Tensor]:
        """The parameter's part, a view, that is the checkpoint's tensor."""
        return [tensor.t() if self.transposed and tensor.dim() == 2 else tensor]

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """The shapes of the checkpoint's tensors for a parameter of this shape."""
        return [torch.Size(reversed(shape)) if self.transposed and len(shape) == 2 else shape]


@dataclass(frozen=True)
class Join:
    """Several of the checkpoint's tensors, one below the other: queries, keys and values for example.

    Args:
        ours: the parameter's name.
        theirs: the checkpoint's, in order; None for one that it leaves out because it is zero (a bias of keys adds
            the same to every score of a row, so that it changes no weight).
        rows: how many rows each has.
    """

    ours: str
    theirs: tuple[str | None, ...]
    rows: tuple[int, ...]

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The checkpoint's names."""
        return self.theirs

    def to_theirs(self, tensor: Tensor) -> list[Tensor]:
        """The parameter's parts, views, that are the checkpoint's tensors."""
        return [*tensor.split(self.rows)]

    def shapes(self, shape: torch.Size) -> list[torch.Size]:
        """The shapes of the checkpoint's tensors for a parameter of this shape."""
        return [torch.Size((rows, *shape[1:])) for rows in self.rows]


@dataclass(frozen=True)
class Tie:
    """A tensor of the checkpoint that repeats another one; either of the two may be left out.

    Args:
        theirs: the name of the repetition.
        to: the name of the tensor that it repeats.
    """

    theirs: str
    to: str


@dataclass(frozen=True)
class Ignore:
    """A tensor of the checkpoint that the model computes by itself, or has no use for; it is written back as it was.

    Args:
        theirs: its name, {} standing for any number.
    """

    theirs: str


@dataclass(frozen=True)
class Spelling:
    """Another end of names, that some checkpoints have where the rules say the usual one; they are written as read.

    Args:
        theirs: how such a checkpoint's names end.
        usual: how the rules have it.
    """

    theirs: str
    usual: str


@dataclass(frozen=True)
class Prefix:
    """A beginning of the checkpoint's names that some files leave out, all or none of them; they are written as read.

    Args:
        theirs: it, with its dot.
    """

    theirs: str


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Rule = Rename | Join | Tie | Ignore | Spelling | Prefix


@dataclass(frozen=True)
class Layout:
    """What a checkpoint held, beyond the values of the parameters.

    Args:
        dtypes: name and dtype of every tensor, in the order of the file.
        ignored: the tensors that no parameter was made from.
        spelled: the names that the file spells in another way than the rules, and how.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict[str, torch.dtype])
    ignored: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    spelled: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class _Entry:
    """One parameter, and the checkpoint's names for it."""

    ours: str
    rule: Rename | Join
    theirs: tuple[str | None, ...]


def read_tensors(
    rules: Sequence[Rule],
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], Layout]:
    """The parameters that a checkpoint's tensors make.

    Shapes are compared before any number is read, and numbers go one tensor after another to where they stay, so that
    memory holds the parameters once.

    Args:
        rules: the family's table.
        tensors: the checkpoint's, by name.
        expected: the model's state_dict, whose shapes alone are read (it may be on the meta device).
        dtype: of the parameters; as in the file unless given.

    Returns:
        The parameters by our names, and what is needed to write the checkpoint again.

    Raises:
        TensorError: tensors are missing, unknown, of another shape, or not floating-point; it lists them.
        NotFiniteError: they hold NaN or infinities; it lists them.
    """
    spelled = _spelled(rules, tensors)
    names = {theirs: usual for usual, theirs in spelled.items()}
    tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
    dtypes = {name: t.dtype for name, t in tensors.items()}
    ties = [rule for rule in rules if isinstance(rule, Tie) and rule.theirs in tensors]
    tensors = {tie.to: tensors[tie.theirs] for tie in ties} | tensors
    entries = _entries(rules, expected)
    wrong: list[str] = []
    for entry in entries:
        for name, shape in zip(entry.theirs, entry.rule.shapes(expected[entry.ours].shape), strict=True):
            if name is not None and (fault := _fault(spelled.get(name, name), tensors.get(name), shape)):
                wrong.append(fault)
    used = {name for entry in entries for name in entry.theirs}
    rest = {name: tensors[name] for name in tensors if name not in used}
    wrong += _unknown(rules, rest, tensors, spelled)
    if wrong:
        raise TensorError(listed(wrong))
    bad: list[str] = []

    def read(name: str) -> Tensor:
        numbers = tensors[name].read()
        if not is_finite(numbers):
            bad.append(spelled.get(name, name))
        return numbers

    state: dict[str, Tensor] = {}
    for entry in entries:
        like = next(tensors[name].dtype for name in entry.theirs if name is not None)
        state[entry.ours] = torch.empty(expected[entry.ours].shape, dtype=like if dtype is None else dtype)
        for name, part in zip(entry.theirs, entry.rule.to_theirs(state[entry.ours]), strict=True):
            _ = part.zero_() if name is None else part.copy_(read(name))
    repeated = {tie.theirs for tie in ties}  # they are written from what they repeat
    ignored = {name: read(name).clone() for name in rest if name not in repeated}
    if bad:
        raise NotFiniteError(listed(bad))
    return state, Layout(dtypes, ignored, spelled)


def write_tensors(
    rules: Sequence[Rule], state: Mapping[str, Tensor], layout: Layout, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The checkpoint's tensors that a model's parameters make: the inverse of `read_tensors`.

    Args:
        rules: the family's table.
        state: the model's state_dict.
        layout: of the checkpoint that the model was read from; an empty one for a new model.
        dtype: of the tensors made from parameters; as in the layout unless given, else as the parameters are.
    """
    tensors: dict[str, Tensor] = {}
    for entry in _entries(rules, state):
        parts = entry.rule.to_theirs(state[entry.ours].detach())
        for name, part in zip(entry.theirs, parts, strict=True):
            if name is not None:
                tensors[name] = part.to(dtype or layout.dtypes.get(name, part.dtype)).contiguous()
    for rule in rules:
        if isinstance(rule, Tie) and rule.theirs in layout.dtypes and rule.to in tensors:
            tensors[rule.theirs] = tensors[rule.to].clone()  # a file holds each tensor by itself
    for rule in rules:
        if isinstance(rule, Tie) and rule.theirs in layout.dtypes and rule.to not in layout.dtypes:
            tensors.pop(rule.to, None)
    tensors |= {name: tensor for name, tensor in layout.ignored.items() if name not in tensors}
    order = {name: i for i, name in enumerate(layout.dtypes)}
    names = sorted(tensors, key=lambda name: order.get(name, len(order)))
    return {layout.spelled.get(name, name): tensors[name] for name in names}


def is_finite(tensor: Tensor) -> bool:
    """Whether no number in it is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:  # PyTorch compares none of the eight-bit kinds
        tensor = tensor.float()
    least, largest = tensor.aminmax()  # NaN if there is one; isfinite would make tensors of the same size
    return bool(least.isfinite() & largest.isfinite())


def listed(items: Sequence[str], most: int = 8) -> str:
    """The first of these, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _entries(rules: Sequence[Rule], expected: Mapping[str, Tensor]) -> list[_Entry]:
    """Every parameter with the first rule that names it."""
    table = [(_pattern(rule.ours), rule) for rule in rules if isinstance(rule, Rename | Join)]
    entries: list[_Entry] = []
    for name in expected:
        for pattern, rule in table:
            found = pattern.fullmatch(name)
            if found:
                *numbers, kind = found.groups()
                suffix = kind or ""
                theirs = tuple(None if s is None else s.format(*numbers) + suffix for s in rule.sources)
                entries.append(_Entry(name, rule, theirs))
                break
        else:
            raise LookupError(f"no rule names the parameter {name}")
    return entries


def _spelled(rules: Sequence[Rule], tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The usual name of every tensor that is spelled in another way, and how it is; none if the usual is there too."""
    found: dict[str, str] = {}
    for rule in rules:
        if isinstance(rule, Spelling):
            for name in tensors:
                usual = name.removesuffix(rule.theirs) + rule.usual
                if name.endswith(rule.theirs) and usual not in tensors:
                    found[usual] = name
        elif isinstance(rule, Prefix) and not any(name.startswith(rule.theirs) for name in tensors):
            known = [_pattern(name) for other in rules for name in _names(other) if name.startswith(rule.theirs)]
            found |= {
                rule.theirs + name: name
                for name in tensors
                if any(pattern.fullmatch(rule.theirs + name) for pattern in known)
            }
    return found


def _names(rule: Rule) -> Sequence[str]:
    """The checkpoint's names in a rule."""
    if isinstance(rule, Rename | Join):
        return [name for name in rule.sources if name is not None]
    return [rule.theirs, rule.to] if isinstance(rule, Tie) else [rule.theirs] if isinstance(rule, Ignore) else []


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"(\.weight|\.bias)?")


def _fault(name: str, tensor: StoredTensor | None, shape: torch.Size) -> str | None:
    if tensor is None:
        return f"{name} is missing"
    if tensor.shape != shape:
        return f"{name} has shape {tuple(tensor.shape)} instead of {tuple(shape)}"
    if tensor.dtype not in _DTYPES:
        return f"{name} holds {tensor.dtype} instead of floating-point numbers of 16, 32 or 64 bits"
    return None


def _unknown(
    rules: Sequence[Rule],
    rest: Mapping[str, StoredTensor],
    tensors: Mapping[str, StoredTensor],
    spelled: Mapping[str, str],
) -> list[str]:
    """What is wrong with the tensors that no parameter was made from."""
    ignored = [_pattern(rule.theirs) for rule in rules if isinstance(rule, Ignore)]
    ties = {rule.theirs: rule.to for rule in rules if isinstance(rule, Tie)}
    wrong: list[str] = []
    for name, tensor in rest.items():
        original = tensors.get(ties.get(name, ""))
        if name in ties and original is not None and not tensor.equals(original):
            names = [spelled.get(one, one) for one in (name, ties[name])]
            wrong.append(f"{names[0]} differs from {names[1]}, which it must repeat")
        elif name not in ties and not any(pattern.fullmatch(name) for pattern in ignored):
            wrong.append(f"{spelled.get(name, name)} is unknown")
    return wrong
