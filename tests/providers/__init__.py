"""The adapters for LLM SDKs, and the local LLM server that they are tested with."""
