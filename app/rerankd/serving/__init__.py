"""The service: served models, loading, profiles and assembly."""
