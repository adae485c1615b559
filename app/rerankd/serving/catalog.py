"""The models that requests may name."""

from collections.abc import Sequence

from rerankd.config.model_names import ModelNames
from rerankd.errors import ModelNotFound
from rerankd.serving.model import ServedModel

# A caller's text in a message: enough to recognise it, not enough to fill an answer with.
_NAME_SHOWN = 100


class Catalog:
    """Served models by their names and aliases. All of it changes at once."""

    def __init__(self, models: Sequence[ServedModel], *, default: str, fallback: str | None = None) -> None:
        self.replace(models, default=default, fallback=fallback)

    def replace(self, models: Sequence[ServedModel], *, default: str, fallback: str | None = None) -> None:
        """Serve these models. `default` answers requests that name no model, `fallback` those that name an unknown one;
        without it they are refused.
        """
        by_name = {name: model for model in models for name in (model.name, *model.aliases)}
        self.models = models
        self._names = ModelNames(by_name, fallback=None if fallback is None else by_name[fallback])
        self._default = by_name[default]

    def named(self, name: str | None) -> ServedModel:
        """The model of that name or alias, with or without a vendor before it; the default for None.

        Raises:
            ModelNotFound: no model is called that; the message lists those that are.
        """
        if name is None:
            return self._default
        model = self._names.find(name)
        if model is None:
            known = ", ".join(model.name for model in self.models)
            raise ModelNotFound(
                f"unknown model {name[:_NAME_SHOWN]!r}; known: {known}. The operator can give a model further names "
                "(aliases in the registry), or set RERANKD_MODEL_FALLBACK"
            )
        return model
