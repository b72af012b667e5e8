"""What tests share: a run in this process, a token cache of their own, small settings."""
