"""What every test with real processes stands on: a cluster, a way to ask it, and patience."""
