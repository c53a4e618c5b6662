"""What lies behind `lexray.storage.store`: connections, credentials, retries, uploads in parts."""
