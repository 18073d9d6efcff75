"""LiteLLM adapter."""
