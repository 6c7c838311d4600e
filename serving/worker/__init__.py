"""The worker process: state, signals, metrics, log, patches of BentoML."""
