"""The way from any front end to the service: API keys, quotas, deadlines, metrics and errors, without a transport."""
