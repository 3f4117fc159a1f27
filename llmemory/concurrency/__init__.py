"""What threads, forks and event loops of one process share."""
