"""Checkpoints read without running them: nothing named in a file is imported, looked up or called. Never imports torch."""
