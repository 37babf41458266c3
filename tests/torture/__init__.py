"""Kill a training run again and again, and see that nothing is lost: `python -m tests.torture --kills=200`."""
