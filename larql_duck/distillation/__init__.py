"""Teacher and student: what a student kept of what its teacher states, and training it on that."""
