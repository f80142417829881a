"""Training: a persistent queue of jobs, one worker process a job, and the adapter methods it trains."""
