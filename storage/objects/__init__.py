"""Backends of `lexray.storage.store`: connections, credentials, retries, multipart uploads."""
