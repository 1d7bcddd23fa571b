"""What tables show under edits: features and facts of the edited model in the place of the vindex's rows."""
