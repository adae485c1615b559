"""Template files of language models with a classifier's head: their own prompt, or the folder's chat template."""

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from rerankd.recognition.activations import ActivationSetting
from rerankd.recognition.chat_template import read_chat_prompt
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.tokenizer_settings import content_of
from rerankd.scorers.pair_prompt import PairTemplateFile, parts_of


class ClassifierTemplate(PairTemplateFile):
    """A template file of the method "prompted-classifier"."""

    activation: ActivationSetting = Field(default="sigmoid", description="Where neither options nor files name one.")


class RewardTemplate(BaseModel):
    """A template file of the method "reward-model": its prompt is the folder's chat template, over a question of the
    user and an answer of the assistant.
    """

    model_config = ConfigDict(extra="forbid")

    activation: ActivationSetting = Field(default="identity", description="As for a classifier.")
    max_length: int | None = Field(default=None, ge=64)

    def read(self, files: ModelFiles, tokenizer: Tokenizer) -> ClassifierTemplate:
        """The prompt of a folder. The tokenizer puts its first token there, if it puts one before texts, and the chat
        template does not put it there again.

        Raises:
            ConfigError: see `read_chat_prompt`.
        """
        prompt = read_chat_prompt(files, roles=("user", "assistant"))
        text = prompt.text.removeprefix(content_of(files.tokenizer_config.get("bos_token")) or "")
        return ClassifierTemplate(
            prompt=parts_of(text, tokenizer),
            strips=prompt.strips,
            tokenizer_beginning=True,
            activation=self.activation,
            max_length=self.max_length,
        )
