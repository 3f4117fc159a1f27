"""What threads, forks, event loops and tasks of one process share."""
