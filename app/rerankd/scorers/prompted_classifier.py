"""Language models with a classifier's head that read a pair inside of a prompt.

Such are Qwen3-Reranker as a sequence classifier, rerankers that sentence-transformers saves with a chat template, and
reward models. The head reads the last token, or nemotron's the mean of all. Outputs and activation mean what they do
for a cross-encoder.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.errors import ConfigError
from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.chat_template import read_chat_prompt, reads_own_prompt
from rerankd.recognition.heads import Head, read_activation, read_head, score_of
from rerankd.recognition.kinds import refuse_other_than_cross_encoder, refuse_unknown_settings
from rerankd.recognition.native import native_form
from rerankd.recognition.tokenizer_settings import refuse_other_cuts
from rerankd.scorers.base import Kinds, Made, ScorerSpec
from rerankd.scorers.classifier_template import ClassifierTemplate, RewardTemplate
from rerankd.scorers.pair_prompt import EncodedInPrompts, PairPrompt, PairTemplateFile, check_instruction, parts_of
from rerankd.scorers.templates import is_recognised, read_prompt_template
from rerankd.scorers.tokenizer_files import TokenizerFolder
from rerankd.scorers.yes_no_template import YesNoTemplate
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import stacked

_Template = ClassifierTemplate | YesNoTemplate
_SHAPES: Final[Mapping[str, type[_Template | RewardTemplate]]] = {
    "prompted-classifier": ClassifierTemplate,
    "reward-model": RewardTemplate,
    "yes-no": YesNoTemplate,
}


class PromptedClassifierOptions(BaseModel):
    """`[model.options]` of the scorer `prompted-classifier`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(
        default=None, description="One of `prompted-classifier`, `reward-model` or `yes-no`; default: the folder's own."
    )
    instruction: str | None = Field(default=None, description="Default: the template's.")
    activation: ActivationSetting | None = Field(
        default=None, description="As for `cross-encoder`; default: the model's own."
    )
    label: int | None = Field(
        default=None, ge=0, description='Number of the output that means "relevant", for models with several.'
    )


class PromptedClassifier(EncodedInPrompts):
    def __init__(
        self, prompt: PairPrompt, *, pad_id: int, activation: ActivationSetting, head: Head, fingerprint: str
    ) -> None:
        super().__init__(prompt, pad_id=pad_id, activation=activation)
        self._head = head
        self.task = Classify(outputs=head.outputs)
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, spec: ScorerSpec) -> "PromptedClassifier":
        """Read tokenizer, configuration and prompt.

        Raises:
            ConfigError: a file is missing, no prompt is known for the model, or the head's meaning is unknown.
        """
        options = read_options(spec.options, PromptedClassifierOptions, of="scorer 'prompted-classifier'")
        read = TokenizerFolder.read(spec.folder)
        refuse_other_than_cross_encoder(read.files)
        refuse_unknown_settings(read.files, prompted=True)
        refuse_other_cuts(read.files, side=read.truncation_side)
        native = native_form(read.files)
        if not read.names_pad and (native is None or native.pooling is None):
            raise ConfigError(
                f"{spec.folder}: no file names a padding token, by which this model finds the end of a text; name one "
                "that ends no text in tokenizer_config.json (pad_token) or config.json (pad_token_id)"
            )
        head = read_head(read.files, label=options.label)
        template = _template(spec, read, options)
        instruction = options.instruction if options.instruction is not None else template.instruction
        max_length = read.length(spec.max_length, usual=template.max_length)
        written = template.model_dump(include=set(PairTemplateFile.model_fields))
        return cls(
            PairPrompt(read.tokenizer, template, instruction=instruction, max_length=max_length),
            pad_id=read.pad_id,
            activation=options.activation or read_activation(read.files, head) or template.activation or "sigmoid",
            head=head,
            fingerprint=json.dumps(["prompted-classifier", max_length, head.label, head.problem, instruction, written]),
        )

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        """Raw scores of shape [pairs] from the logits of each."""
        logits = stacked(rows)
        return score_of(self._head, logits)


def _template(spec: ScorerSpec, read: TokenizerFolder, options: PromptedClassifierOptions) -> _Template:
    """The named template, or the one that recognises the model, or the folder's own."""
    if options.template is None and reads_own_prompt(read.files) and not is_recognised(spec, methods=_SHAPES):
        prompt = read_chat_prompt(read.files)
        return ClassifierTemplate(
            prompt=parts_of(prompt.text, read.tokenizer),
            instruction=prompt.instruction,
            instruction_form=prompt.instruction_form,
            strips=prompt.strips,
        )
    template = read_prompt_template(spec, scorer="prompted-classifier", name=options.template, shapes=_SHAPES)
    if isinstance(template, RewardTemplate):
        return template.read(read.files, read.tokenizer)
    if "{instruction}" in "".join(template.prompt):
        check_instruction(read.files, said=options.instruction, template=template.instruction)
    return template
