"""What lies behind `storage.store`: connections, credentials, retries, uploads in parts."""
