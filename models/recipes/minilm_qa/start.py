"""The model as it starts: the bi-encoder's layers, BM25's tables, and a head that adds the two."""

import copy

import torch
from transformers import BertModel

from models.recipes.minilm_qa.teacher import start_weights
from rerankd.tools.training.lexical_tables import LexicalTables
from rerankd.tools.training.model import CrossEncoder, new_config


def new_model(tables: LexicalTables, *, layers: int | None = None) -> CrossEncoder:
    """Return the model before any step, with all or the first of its layers.

    `tables` are those of the texts that it is trained on.
    """
    config = new_config(start_weights())
    config.num_hidden_layers = layers or config.num_hidden_layers
    model = CrossEncoder(config, tables)
    bert = BertModel.from_pretrained(start_weights(), add_pooling_layer=False, dtype=torch.float32)
    del bert.encoder.layer[config.num_hidden_layers :]
    model.bert.load_state_dict(bert.state_dict())
    return model


def cut(model: CrossEncoder, *, layers: int) -> CrossEncoder:
    """Return a model of this many of the layers, the first and the last among them."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    fewer = CrossEncoder(config)
    every = model.bert.encoder.layer
    kept = [round(number * (len(every) - 1) / (layers - 1)) for number in range(layers)]
    whole = {name: value for name, value in model.state_dict().items() if not name.startswith("bert.encoder.layer.")}
    fewer.load_state_dict(whole, strict=False)
    for ours, theirs in zip(fewer.bert.encoder.layer, kept, strict=True):
        ours.load_state_dict(every[theirs].state_dict())
    return fewer
