"""The daemon: where pixels come from and where the answer goes."""
