"""How a translator is built and trained."""

import dataclasses
from dataclasses import asdict, dataclass
from typing import Literal

from regard.inputs.text import TextTokenizer
from regard.models.translator import Translator, TranslatorConfig
from regard.training.baselines import RecurrentTranslator, RecurrentTranslatorConfig
from regard.training.errors import TrainingError
from regard.training.finish import AnyTranslator
from regard.training.loop import TrainerConfig
from regard.training.optimiser import OptimiserConfig, ScheduleName
from regard.training.ranges import check_ranges
from regard.training.run import as_they_are, common, only_of_transformers
from regard.training.workers import Precision

_OF_THE_MODEL = (
    *("family", "vocab_size", "d_model", "heads", "encoder_layers", "decoder_layers", "feed_forward"),
    *("norm_first", "positions"),
)


@dataclass(frozen=True)
class TranslationRecipe:
    """How a translator is built and trained; the defaults are for some thirty thousand short pairs on a CPU.

    One that goes on from a model has its vocabulary and its sizes.
    """

    model: str | None = None  # a translator whose training goes on: a directory or an embedded name; None is a new one
    samples: int = 0  # drawn translations of each source; with 2 or more, BLEU's risk is lowered: see minimum_risk.py
    temperature: float = 0.7  # that these are drawn with
    family: Literal["transformer", "lstm"] = "transformer"  # lstm: a recurrent translator with attention, the baseline
    vocab_size: int = 6000  # pieces of the joint vocabulary
    bpe_dropout: float = 0.0  # probability of leaving out a merge of the training text, another draw every epoch
    d_model: int = 128  # width of every position
    heads: int = 4  # attention heads
    encoder_layers: int = 4
    decoder_layers: int = 4
    feed_forward: int = 256  # hidden width of the feed-forward networks
    dropout: float = 0.3  # of embeddings and sublayers' outputs
    attention_dropout: float = 0.0  # of attention weights
    activation_dropout: float = 0.0  # of the feed-forward networks' hidden units
    norm_first: bool = True  # pre-norm; false is post-norm
    positions: Literal["sinusoidal", "rotary"] = "sinusoidal"
    label_smoothing: float = 0.1  # part of the target spread over the vocabulary
    r_drop: float = 0.0  # R-Drop's α (arXiv 2106.14448); above 0 every batch is passed twice
    r_drop_epoch: int = 0  # R-Drop begins with this epoch: from the start it holds a model at guessing word counts
    batch_tokens: int = 4096  # padded tokens a step, at most, on either side
    shards: int = 2  # batches a step is divided into; so many processes can work on it
    steps: int = 10_000  # updates in all
    peak_learning_rate: float = 0.005  # at the end of the warm-up
    warmup: int = 2000  # steps
    optimiser: Literal["adamw", "muon"] = "adamw"
    schedule: ScheduleName = "inverse-sqrt"
    final_fraction: float = 0.0  # cosine, linear and wsd: last learning rate as a part of the peak
    decay_fraction: float = 0.2  # wsd only: the part of all steps in which the rate falls
    weight_decay: float = 0.0  # decoupled, on matrices only
    clip: float | None = 1.0  # longest gradient; None leaves it as it is
    precision: Precision = "float32"  # of matrix products in training; bfloat16 has fewer digits
    compile: bool = False  # Transformer blocks, with torch.compile; needs a C++ compiler
    patience: int | None = None  # validations without a lower loss after which the run ends
    validate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    keep: int = 20  # checkpoints kept for averaging, the best besides
    watch_every: int = 500  # steps between two looks at attention; 0: none
    seed: int = 1

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.samples == 1 or self.samples < 0:
            raise TrainingError(f"samples is {self.samples}; it may be 2 or more, or 0")
        if not 0.01 <= self.temperature <= 100:
            raise TrainingError(f"temperature is {self.temperature}; it may be from 0.01 to 100")

    def translator(self, tokenizer: TextTokenizer) -> TranslatorConfig:
        """The model's part."""
        names = {field.name for field in dataclasses.fields(TranslatorConfig)} - {"vocab_size"}
        shared = {name: value for name, value in asdict(self).items() if name in names}
        special = {"pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos}
        try:
            return TranslatorConfig(vocab_size=tokenizer.vocab_size, **special, **shared)
        except ValueError as error:
            raise TrainingError(f"the recipe's model cannot be: {error}") from error

    def build(self, tokenizer: TextTokenizer) -> AnyTranslator:
        """A new translator."""
        if self.family == "transformer":
            return Translator(self.translator(tokenizer))
        sizes = {**common(RecurrentTranslatorConfig, self), "vocab_size": tokenizer.vocab_size}
        special = {"pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos}
        return RecurrentTranslator(RecurrentTranslatorConfig(**sizes, **special))

    def optimiser_config(self) -> OptimiserConfig:
        """The optimiser's part."""
        return OptimiserConfig(**common(OptimiserConfig, self))

    def trainer(self, *, workers: int, progress: bool, tensorboard: bool = False) -> TrainerConfig:
        """The loop's part."""
        loop = common(TrainerConfig, self)
        if self.family != "transformer":
            loop["watch_every"] = 0  # its attention is none of the mechanism's
        return TrainerConfig(workers=workers, progress=progress, tensorboard=tensorboard, **loop)

    def check(self) -> None:
        """Refuse what would be ignored.

        Raises:
            TrainingError: if a setting is given that the model to go on from, the family or the loss has no use for.
        """
        only_of_transformers(
            self,
            *("heads", "feed_forward", "attention_dropout", "activation_dropout", "norm_first", "positions"),
            *("optimiser", "compile"),
        )
        if self.model is not None:
            as_they_are(self, _OF_THE_MODEL, f"model {self.model!r}, which has its own")
        if self.samples:
            as_they_are(self, ("label_smoothing", "r_drop", "r_drop_epoch"), "samples, whose risk knows no such thing")
