"""DIFF: what tells one vindex, or what a session shows of one, from another."""
