"""What every adapter needs, whatever protocol it speaks: threads, deadlines, retries, choice of members, options."""
