"""Settings, the registry of models and API keys."""
